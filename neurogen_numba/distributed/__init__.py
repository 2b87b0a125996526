"""Data-parallel training: several processes, called ranks, each train some sequences of a batch, and sum their gradients.

communicator.py is what a model asks of the other ranks, mpi.py and nccl.py ask them. team.py: rank 0 decides, the others follow. launch.py
starts ranks, supervise.py ends all of them where one fails. Nothing here is imported in a process that trains alone, but the two files that
do nothing then: communicator.py and team.py.
"""
