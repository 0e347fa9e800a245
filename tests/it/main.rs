//! Every test that runs the program or reads the repository: one binary, linked once.

mod model;
