"""The embedded models from nothing: drawings, autoencoder, denoisers, judge, and their cards.

A part is one module: its `Settings`, what it is trained on, one step's loss, and how it is
measured. `loop` trains any of them; a killed training goes on to the same bits.
"""
