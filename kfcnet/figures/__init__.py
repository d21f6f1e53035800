"""Figures and tables, drawn from the records that runs leave."""
