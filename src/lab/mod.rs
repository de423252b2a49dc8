//! Labs: a cluster broken on purpose for somebody to mend, with hints in order and checks that give points for every part.
//! `cli lab` begins one from a snapshot, asks its checks and rewinds; labs are files in `labs/`, and users' own have the same form.
//! It chooses, words and grades purely; `work` alone runs scripts, and where machines and snapshots come from it does not know.

pub mod catalogue;
pub mod grade;
pub mod record;
pub mod words;
pub mod work;

pub use catalogue::{Check, Lab, Level, On};
pub use grade::{Graded, Outcome, Score};
pub use record::{Again, Book, Open, Phase, Refused, Rewind};
