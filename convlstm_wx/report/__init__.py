"""Figures and the HTML page that show an evaluation. Never imports torch."""
