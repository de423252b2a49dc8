//! A live view of a cluster: what is known of it at a moment, what has changed since, and how that looks on a screen.
//! `cli top` gathers; `frame` paints purely, `screen` is the only place that takes a terminal and gives it back.
//! It asks nobody anything.

pub mod frame;
pub mod screen;
pub mod state;

pub use frame::{frame, height_of_all, plain};
pub use state::{Etcd, Heard, Node, State};
