//! Bad input, each kind with its own test: what is refused says what it was and what to do, and what need not be
//! refused is worked around.

mod disk;
mod mountpoint;
mod remote;
mod settings;
