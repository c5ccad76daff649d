"""What the kernel offers and Python lacks: system calls, ioctls, /proc and /sys as dataclasses.

No decision is made here; `observe` reads through it and `effect` acts through it.
"""
