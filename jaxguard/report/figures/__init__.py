"""Drawings of a report: inline SVG and PNG, made by matplotlib and Pillow only when a page is rendered."""
