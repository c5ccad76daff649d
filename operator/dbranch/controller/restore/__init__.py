"""DBRestores: which one may begin, what its branch's agent is ordered to do, and how it ends."""
