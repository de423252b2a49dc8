//! What clients did and what they were told: one record per request, and one per change the watches saw.
//! Load writes it, checkers and judges read it, reports keep it.
//! It makes no judgement beyond the classification of an error: acknowledged, surely refused, or unknown.

use super::clock::At;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Index of a member in the run's list of members.
pub type Member = usize;

/// Who asked. A session's requests may overlap: no writer waits for its previous request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Session {
    /// The client that changes its endpoint when one fails (W1).
    Failover,
    /// A writer that stays on one member (W2).
    Pinned(Member),
    /// Linearizable reads on one member (R).
    Reader(Member),
    /// Serializable reads on one member (S): expected to go stale, never to go back.
    Serial(Member),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    Write,
    /// Linearizable read.
    Read,
    /// Serializable read: answered by one member from what it has.
    SerialRead,
}

/// How a request ended, as Jepsen classifies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Ok,
    /// Provably refused: it has not happened and never will.
    Fail,
    /// May have happened, or may yet.
    Unknown,
}

/// What an acknowledged request was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Answer {
    /// Revision of the store in the response's header; for a write, the revision that it made.
    pub revision: i64,
    /// Reads: revision that last changed the key, 0 when it was not there.
    pub mod_revision: i64,
    /// Raft term in the response's header.
    pub term: u64,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Op {
    pub session: Session,
    pub kind: Kind,
    /// Key below the run's prefix.
    pub key: String,
    /// Writes: the unique value. Reads: what was found, `None` when the key was not there.
    pub value: Option<u64>,
    /// Which member it was sent to.
    pub member: Member,
    pub inv: At,
    /// When the client stopped waiting, whatever the outcome.
    pub ret: At,
    pub outcome: Outcome,
    /// Only for `Outcome::Ok`.
    pub answer: Option<Answer>,
    /// The error's text, for the others.
    pub error: Option<String>,
}

impl Op {
    pub fn acked(&self) -> bool {
        self.outcome == Outcome::Ok
    }
    pub fn is_write(&self) -> bool {
        self.kind == Kind::Write
    }
    /// Time from request to answer.
    pub fn latency(&self) -> std::time::Duration {
        self.ret.since(self.inv)
    }
}

/// One change of the store, from a watch or from the final reading.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    pub revision: i64,
    pub key: String,
    pub value: u64,
}

/// gRPC status codes that we tell apart; numbers as in the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code(pub i32);

impl Code {
    pub const INVALID_ARGUMENT: Code = Code(3);
    pub const NOT_FOUND: Code = Code(5);
    pub const ALREADY_EXISTS: Code = Code(6);
    pub const PERMISSION_DENIED: Code = Code(7);
    pub const RESOURCE_EXHAUSTED: Code = Code(8);
    pub const FAILED_PRECONDITION: Code = Code(9);
    pub const OUT_OF_RANGE: Code = Code(11);
    pub const UNIMPLEMENTED: Code = Code(12);
    pub const UNAUTHENTICATED: Code = Code(16);
}

/// Only what a server says after having looked at the request, and before proposing it, is a definite failure.
/// Unavailable, deadlines, resets, cancellations and "no space" (etcd's documentation: the write may still be applied) are not.
pub fn classify(code: Option<Code>) -> Outcome {
    match code {
        Some(
            Code::INVALID_ARGUMENT
            | Code::NOT_FOUND
            | Code::ALREADY_EXISTS
            | Code::PERMISSION_DENIED
            | Code::FAILED_PRECONDITION
            | Code::OUT_OF_RANGE
            | Code::UNIMPLEMENTED
            | Code::UNAUTHENTICATED,
        ) => Outcome::Fail,
        _ => Outcome::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_provable_refusals_are_failures() {
        // 14 Unavailable, 4 DeadlineExceeded, 1 Cancelled, 2 Unknown, 13 Internal, 8 ResourceExhausted, and no code at all.
        for code in [Some(14), Some(4), Some(1), Some(2), Some(13), Some(8), None] {
            assert_eq!(classify(code.map(Code)), Outcome::Unknown, "{code:?}");
        }
        for code in [3, 5, 7, 9, 11, 16] {
            assert_eq!(classify(Some(Code(code))), Outcome::Fail, "{code}");
        }
    }
}
