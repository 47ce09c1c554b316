"""What weighs the updates of a module: curvature from Grams or from h, its total over adapters, its clamp.

``unit.py`` scales Grams, ``lift.py`` makes a separable curvature of h, ``total.py`` adds up and solves, ``positive.py``
keeps precisions positive, ``quadratic.py`` is the loss of a task in that metric.
"""
