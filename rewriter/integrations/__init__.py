"""For training scripts of other libraries; each module imports its library, or says how to install it."""
