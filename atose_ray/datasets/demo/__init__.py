"""The demo data set: rendered on the spot by its own synthesiser, so that nothing has to be downloaded."""

from atose_ray.datasets.demo.adapter import DemoConfig

__all__ = ["DemoConfig"]
