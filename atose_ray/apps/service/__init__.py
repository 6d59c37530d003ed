"""Models as a service over HTTP: what a request may ask, its limits, the page. `atose_ray/serve.py` starts it, in one
process or on Ray Serve (runtime/serve.py)."""
