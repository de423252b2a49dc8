//! What can be different on a cluster, one change at a time, and every verdict that each of them flips.

mod cluster;
mod machines;

use super::Cluster;

type Change = fn(&mut Cluster);

/// A change in words, as it is made, and all that it makes of the verdicts.
pub(super) type Row = (&'static str, Change, &'static [&'static str]);

pub(super) fn all() -> impl Iterator<Item = &'static Row> {
    cluster::CHANGES.iter().chain(machines::CHANGES)
}

pub(super) const MEMBER_2: &str = r#",{"ID":"10238857303342113634","name":"controller-2","peerURLs":["https://192.168.77.13:2380"],"clientURLs":["https://192.168.77.13:2379"]}"#;

/// Edits one unit's block.
pub(super) fn unit(c: &mut Cluster, on: &str, name: &str, from: &str, to: &str, from2: &str, to2: &str) {
    let body = &mut c.answers.get_mut(&format!("{on} probe")).expect(on).get_mut("units").expect("units").0;
    let blocks = body.split("\n\n").map(|block| match block.contains(&format!("Id={name}.service")) {
        true => {
            assert!(block.contains(from) && block.contains(from2), "{block}");
            block.replace(from, to).replace(from2, to2)
        }
        false => block.to_owned(),
    });
    *body = blocks.collect::<Vec<_>>().join("\n\n");
}

pub(super) fn down(c: &mut Cluster, on: &str, name: &str) {
    unit(c, on, name, "ActiveState=active", "ActiveState=inactive", "SubState=running", "SubState=dead");
}

/// `from` gets no answer from `target`.
pub(super) fn not_ready(c: &mut Cluster, from: &str, target: &str, exit: u32) {
    let body = &mut c.answers.get_mut(&format!("{from} probe")).expect(from).get_mut("matrix").expect("matrix").0;
    let mark = format!("= {target} 200 0 ");
    let line = body.lines().find(|line| line.contains(&mark)).expect("a row").to_owned();
    *body = body.replace(&line, &format!("=18ea7ec934afbcae= {target} 0 {exit} 2.002 Failed to connect"));
}
