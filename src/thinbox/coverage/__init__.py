"""Coverage: which kernel functions and pages each call executes, reads or writes; the horizontal attack profile."""
