"""The parts of ``benches/validate_gpu.py``: running them, reading what came out, reporting it.

Nothing here imports torch or dasr_ops: those may crash or hang, and live in processes of their own.
"""
