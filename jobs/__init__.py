"""What a user submits. Each script is one job; the other modules are stages that jobs share.

Import this package before Ray, which reads its settings as it is imported: a job that is not submitted to a cluster starts
a Ray of its own, whose ports listen on every interface, so they ask for a token that only its processes inherit.
"""

import os
import secrets

if "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ:
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
