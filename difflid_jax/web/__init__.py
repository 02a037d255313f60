"""The page of `difflid serve`: its HTTP application, and the page itself in one file (page.html)."""
