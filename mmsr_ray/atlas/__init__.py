"""Atlas: the made-up world that the whole system runs on when there is no web and no GPU.

The product never imports this package: it talks to Atlas over HTTP, as to the web, and through a model folder, as
to a hub. Only jobs and tests come here.
"""
