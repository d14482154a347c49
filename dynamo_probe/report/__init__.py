"""Figures and a page of HTML from the log of a run: the views of the tab, for a paper or a mail."""
