//! `snapshot list`: records as a tree, with age, size and what now stands against going back to each.
//! `snapshot` hands it its words; what is kept of etcd alone stands below, what cannot be read last.
//! It changes nothing and takes no lock; without libvirt it shows what the directory says.

use super::super::args::{Format, Global, Output};
use super::super::error::CliError;
use super::super::{etcd_only, exit, render, session, status};
use crate::host::{Host, blocking};
use crate::life::Machines;
use crate::snapshot::{self, Fits, Name, Parts, Record, State, tree};
use crate::store::ClusterDir;
use jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

pub async fn list(global: &Global, output: &Output) -> Result<u8, CliError> {
    let dir = ClusterDir::open(&session::parent(global)?, &session::cluster_name(global)?)?;
    let current = dir.current_snapshot()?;
    let is_current = |record: &Record| current.as_deref() == Some(record.name.as_str());
    let (mut records, mut unreadable) = (Vec::new(), Vec::new());
    for (name, record) in dir.load_snapshots::<Record>()? {
        match record {
            Ok(record) => records.push(record),
            Err(error) => unreadable.push((name, error.to_string())),
        }
    }
    unreadable.extend(etcd_only::unreadable(&dir)?);
    let now = Timestamp::now();
    let age = |record: &Record| seconds_since(now, record.taken);
    let stores = etcd_only::all(&dir)?;
    let against = obstacles(global, &dir, &records).await;
    if output.output.unwrap_or(global.format) == Format::Json {
        let rows: Vec<_> = tree(&records)
            .iter()
            .map(|(depth, record)| {
                let (current, obstacle) = (is_current(record), against.get(&record.name));
                json!({ "snapshot": record, "depth": depth, "current": current, "age_s": age(record), "obstacle": obstacle })
            })
            .chain(stores.iter().map(|one| json!({ "etcd_snapshot": one, "age_s": seconds_since(now, one.taken) })))
            .chain(unreadable.iter().map(|(name, problem)| json!({ "name": name, "problem": problem })))
            .collect();
        render::print_line(&serde_json::to_string_pretty(&rows).map_err(CliError::failed)?);
        return Ok(exit::OK);
    }
    if records.is_empty() && unreadable.is_empty() && stores.is_empty() {
        render::print_line(&format!("no snapshots of cluster {}", dir.name()));
        return Ok(exit::OK);
    }
    let mut table = status::table(["snapshot", "age", "MiB", "note"]);
    for (depth, record) in tree(&records) {
        let branch = if depth == 0 { String::new() } else { format!("{}└ ", "  ".repeat(depth - 1)) };
        let mark = if is_current(record) { " (current)" } else { "" };
        let note = match record.state {
            State::Whole => {
                let said: Vec<&str> = record.note.iter().chain(against.get(&record.name)).map(String::as_str).collect();
                said.join("; ")
            }
            _ => "never finished; the next save or delete removes it".to_owned(),
        };
        table.add_row([format!("{branch}{}{mark}", record.name), shown_age(age(record)), (record.bytes >> 20).to_string(), note]);
    }
    for one in &stores {
        let note = format!("etcd only, revision {}; {}", one.revision, one.note.as_deref().unwrap_or_default());
        let note = note.trim_end_matches("; ").to_owned();
        let age = shown_age(seconds_since(now, one.taken));
        table.add_row([one.name.to_string(), age, (one.bytes >> 20).to_string(), note]);
    }
    for (name, problem) in unreadable {
        table.add_row([name, "?".to_owned(), "?".to_owned(), problem]);
    }
    render::print_line(&table.to_string());
    Ok(exit::OK)
}

/// What stands against going back to each record, as libvirt says it now; where it cannot be asked, nothing is said.
async fn obstacles(global: &Global, dir: &ClusterDir, records: &[Record]) -> BTreeMap<Name, String> {
    let whole: Vec<&Record> = records.iter().filter(|record| record.state == State::Whole).collect();
    if whole.is_empty() {
        return BTreeMap::new();
    }
    let (Ok(Some(plan)), Ok(host)) = (dir.load_plan(), session::connect_to(global, dir)) else { return BTreeMap::new() };
    let machines = Machines { plan: Arc::new(plan), host: host.clone(), mark: session::mark(dir) };
    let (Ok(facts), Ok(parts)) = (blocking(move || host.facts()).await, snapshot::parts(&machines).await) else {
        return BTreeMap::new();
    };
    let now = Fits::of(&machines.plan, &facts);
    whole.iter().filter_map(|record| Some((record.name.clone(), obstacle(record, &now, &parts)?))).collect()
}

/// Why a whole record cannot be gone back to; `None`: it can.
fn obstacle(record: &Record, now: &Fits, parts: &Parts) -> Option<String> {
    let mut against = record.fits.differs(now);
    let lacking = parts.lacking(&record.name);
    if against.is_empty() && !lacking.is_empty() {
        against.push(format!("{} has no part in it", snapshot::listed(&lacking)));
    }
    (!against.is_empty()).then(|| format!("cannot be gone back to: {}", against.join("; ")))
}

fn seconds_since(now: Timestamp, then: Timestamp) -> i64 {
    now.as_second().saturating_sub(then.as_second()).max(0)
}

/// `40 s`, `12 min`, `5 h`, `3 days`
fn shown_age(seconds: i64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_said_in_the_unit_that_people_would_use() {
        let shown = [0, 119, 120, 7199, 7200, 172_799, 172_800].map(shown_age);
        assert_eq!(shown, ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 days"]);
    }

    #[test]
    fn a_snapshot_that_cannot_be_gone_back_to_says_why() {
        let node = |n| crate::spec::NodeName::worker(n);
        let fits = |nodes: &[u8]| Fits {
            plan_sha256: format!("{nodes:?}"),
            image_key: "a".to_owned(),
            kernel_sha256: "b".to_owned(),
            qemu_version: "10.0.2".to_owned(),
            nodes: nodes.iter().map(|n| node(*n)).collect(),
        };
        let name = Name::parse("one").expect("a name");
        let record = Record::begun(name, fits(&[0, 1]), BTreeMap::new(), Timestamp::now());
        let kept = |one: &[&str]| -> Parts {
            [(node(0), &["one"][..]), (node(1), one)]
                .into_iter()
                .map(|(node, names)| (node, names.iter().map(|&name| name.to_owned()).collect()))
                .collect()
        };
        let said = |now: &[u8], one: &[&str]| obstacle(&record, &fits(now), &kept(one));
        assert_eq!(said(&[0, 1], &["one", "two"]), None);
        assert_eq!(said(&[0, 1], &["two"]).as_deref(), Some("cannot be gone back to: worker-1 has no part in it"));
        assert_eq!(said(&[0], &["one"]).as_deref(), Some("cannot be gone back to: worker-1 is not in the cluster any more"));
    }
}
