"""Convolutions in a form that is fast in loops on a CPU.

XLA for CPUs brings convolutions into the form that its fast kernels take, but in the
outermost computation only: in the body of a loop or a branch those of gradients take a
path 10 to 100 times as slow. Grouped ones are slow everywhere. Here programs are
rewritten before XLA sees them.
"""
