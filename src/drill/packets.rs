//! Packet rules of a cut as text for nft, and the count of what they dropped as nft tells it.
//! Injectors of every kind load the same text into the target's own kernel.
//! It is pure: addresses are given, nothing is run.

use super::act::{Direction, Rule};
use super::catalogue::Ports;
use crate::spec::NodeName;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// The one table that drills use: to heal is to delete it, and its presence is a fault in force.
pub const TABLE: &str = "inet ktcw_drill";

/// A ruleset that replaces the table. Both ends of a connection are dropped, whoever opened it: rules know no connections.
pub fn ruleset(rules: &[Rule], address: &dyn Fn(&NodeName) -> Option<Ipv4Addr>) -> Result<String, String> {
    let mut chains = [String::new(), String::new()];
    for rule in rules {
        let port = match rule.ports {
            Ports::Peer => 2380,
            Ports::Client => 2379,
        };
        let (chain, field) = match rule.direction {
            Direction::In => (&mut chains[0], "saddr"),
            Direction::Out => (&mut chains[1], "daddr"),
        };
        let who = match &rule.peer {
            Some(peer) => format!("ip {field} {} ", address(peer).ok_or_else(|| format!("{peer} has no address"))?),
            None => String::new(),
        };
        for end in ["dport", "sport"] {
            // A client port has clients at its other end only: what we ask of other members' ports is not meant.
            let ours = (end == "dport") == (rule.direction == Direction::In);
            if rule.ports == Ports::Peer || ours {
                let _ = writeln!(chain, "    {who}tcp {end} {port} counter drop");
            }
        }
    }
    let [input, output] = chains;
    Ok(format!(
        "table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n\
         \x20 chain in {{\n    type filter hook input priority -300; policy accept;\n    iif lo accept\n{input}  }}\n\
         \x20 chain out {{\n    type filter hook output priority -300; policy accept;\n    oif lo accept\n{output}  }}\n}}\n"
    ))
}

/// Packets dropped so far, from `nft list table`.
pub fn dropped(listing: &str) -> u64 {
    let counts = listing.lines().filter(|line| line.trim_end().ends_with("drop")).filter_map(|line| {
        let (_, rest) = line.split_once("counter packets ")?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    });
    // A node may say any number.
    counts.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(node: &NodeName) -> Option<Ipv4Addr> {
        Some(Ipv4Addr::new(10, 0, 0, node.index() + 10))
    }

    #[test]
    fn a_peer_cut_drops_both_ends_of_both_directions() {
        let rule = |direction| Rule { peer: Some(NodeName::controller(1)), direction, ports: Ports::Peer };
        let text = ruleset(&[rule(Direction::In), rule(Direction::Out)], &address).expect("renders");
        for line in
            ["ip saddr 10.0.0.11 tcp dport 2380", "ip saddr 10.0.0.11 tcp sport 2380", "ip daddr 10.0.0.11 tcp dport 2380"]
        {
            assert!(text.contains(line), "{text}");
        }
        assert!(text.starts_with("table inet ktcw_drill\ndelete table inet ktcw_drill\n"));
    }

    #[test]
    fn a_client_cut_leaves_the_members_own_questions_alone() {
        let rule = Rule { peer: None, direction: Direction::In, ports: Ports::Client };
        let text = ruleset(&[rule], &address).expect("renders");
        assert!(text.contains("    tcp dport 2379 counter drop") && !text.contains("sport"), "{text}");
    }

    #[test]
    fn counters_are_summed_and_an_empty_listing_is_none() {
        let listing = "\
            ip saddr 10.0.0.11 tcp dport 2380 counter packets 12 bytes 720 drop\n\
            ip saddr 10.0.0.11 tcp sport 2380 counter packets 3 bytes 180 drop\n";
        assert_eq!((dropped(listing), dropped("")), (15, 0));
        let most = format!("counter packets {} bytes 1 drop\n", u64::MAX);
        assert_eq!(dropped(&most.repeat(2)), u64::MAX);
    }
}
