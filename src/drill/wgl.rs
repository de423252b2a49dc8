//! A search for a linearization of one register, after Wing, Gong and Lowe: the independent oracle of the checker's tests.
//! It sees only values and times, no revisions, so it cannot share a mistake with the checker; it is exponential and for small histories.
//! It knows nothing of etcd.

use super::history::{Op, Outcome};
use std::collections::HashSet;

/// Whether writes and linearizable reads of one key can be put in one order that explains all answers.
/// Unknown writes may have happened at any time from their start on, or never.
pub fn linearizable(ops: &[Op]) -> bool {
    // A refused write has no effect, and a read without an answer says nothing.
    let calls: Vec<Call> = ops
        .iter()
        .filter(|op| op.acked() || (op.is_write() && op.outcome == Outcome::Unknown))
        .map(|op| Call {
            inv: op.inv.0,
            ret: if op.acked() { op.ret.0 } else { u64::MAX },
            write: op.is_write(),
            value: op.value.unwrap_or(0),
        })
        .collect();
    assert!(calls.len() <= 128, "the oracle is for small histories");
    let must = calls.iter().enumerate().filter(|(_, c)| c.ret != u64::MAX).fold(0u128, |set, (i, _)| set | (1 << i));
    let mut seen = HashSet::new();
    let mut stack = vec![(0u128, 0u64)];
    while let Some((done, held)) = stack.pop() {
        if done & must == must {
            return true;
        }
        if !seen.insert((done, held)) {
            continue;
        }
        let open = |i: &usize| done & (1 << i) == 0;
        // Whatever is next began before everything still open has ended.
        let horizon = (0..calls.len()).filter(open).map(|i| calls[i].ret).min().unwrap_or(u64::MAX);
        for i in (0..calls.len()).filter(open) {
            let call = &calls[i];
            if call.inv <= horizon {
                if call.write {
                    stack.push((done | (1 << i), call.value));
                } else if call.value == held {
                    stack.push((done | (1 << i), held));
                }
            }
        }
    }
    false
}

struct Call {
    inv: u64,
    ret: u64,
    write: bool,
    value: u64,
}
