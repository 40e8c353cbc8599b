"""The built-in charts; `reporting.render.chart` has the registry."""
