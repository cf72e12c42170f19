"""Gradient routing: which data trains which part of a network (GR section 3)."""

from gradroute.routing.mask import mask_gradient
from gradroute.routing.regions import Groups, Region, parse_units, site_widths
from gradroute.routing.router import Router

__all__ = ["Groups", "Region", "Router", "mask_gradient", "parse_units", "site_widths"]
