"""The Grafana dashboard and the alert rules: `panels` and `alerts` say what they show and when they fire, `grafana` and `rules` write it down.

python -m mmsr_ray.observability.dashboard        writes cluster/monitoring again
"""
