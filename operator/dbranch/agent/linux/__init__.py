"""What the kernel offers and Python does not: system calls, ioctls, /proc and /sys as dataclasses.

No decision is made here: `observe` modules read through it, `effect` modules act through it.
"""
