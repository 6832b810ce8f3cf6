"""The embedded models from nothing: drawings, autoencoder, denoisers, judge, and their cards.

A part is one module with its `Settings`, its training data, the loss of one step, and its
measures. `loop` trains any part; a killed training resumes and ends with the same bits.
"""
