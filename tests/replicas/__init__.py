"""Every method a second time: slow, literal, one sample at a time, as its paper writes it."""
