//! Which /24 a cluster gets: one that neither the host routes nor another libvirt network use.
//! `cli` calls `choose_subnet` once, before the plan is made; the answer is recorded, so it does not move later.
//! The choice is pure and follows from the cluster's name; `host_routes` alone reads the machine, and only this machine.

use super::NetworkSeen;
use crate::plan::identity;
use crate::spec::ClusterName;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// A route of the host's main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    pub net: Ipv4Net,
    pub interface: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    #[error("the network {wanted} is taken: {holder} ({held})")]
    Taken { wanted: Ipv4Net, held: Ipv4Net, holder: String },
    #[error("none of {tried} candidate networks is free; the last one, {last}, is taken: {holder}")]
    NoneFree { tried: usize, last: Ipv4Net, holder: String },
}

/// The cluster's /24. `reserved` are ranges the cluster uses itself (pods, services).
///
/// Its own network, when it is there already, is kept and never counts as taken. Errors name who holds the range.
pub fn choose_subnet(
    wanted: Option<Ipv4Net>,
    routes: &[HostRoute],
    networks: &[NetworkSeen],
    cluster: &ClusterName,
    reserved: &[Ipv4Net],
) -> Result<Ipv4Net, SubnetError> {
    let own = networks.iter().find(|network| network.mark.as_ref().is_some_and(|mark| &mark.cluster == cluster));
    let own_bridge = own.and_then(|network| network.bridge.as_deref());
    let holder = |candidate: Ipv4Net| -> Option<(Ipv4Net, String)> {
        let network = networks.iter().filter(|network| own.is_none_or(|own| own.uuid != network.uuid)).find_map(|network| {
            overlapping(&network.subnets, candidate).map(|held| (held, format!("libvirt network {}", network.name)))
        });
        let route = || {
            routes
                .iter()
                .filter(|route| counts(route) && own_bridge != Some(route.interface.as_str()))
                .find(|route| overlap(route.net, candidate))
                .map(|route| (route.net, format!("the host has a route to it on interface {}", route.interface)))
        };
        let own_range = || overlapping(reserved, candidate).map(|held| (held, "the cluster's own pods or services".to_owned()));
        network.or_else(route).or_else(own_range)
    };
    if let Some(wanted) = wanted {
        return match holder(wanted) {
            None => Ok(wanted),
            Some((held, holder)) => Err(SubnetError::Taken { wanted, held, holder }),
        };
    }
    if let Some(kept) = own.and_then(|network| network.subnets.first()) {
        return Ok(*kept);
    }
    let mut taken = None;
    for (tried, candidate) in (1..).zip(candidates(cluster)) {
        match holder(candidate) {
            None => return Ok(candidate),
            Some((_, holder)) => taken = Some(SubnetError::NoneFree { tried, last: candidate, holder }),
        }
    }
    // `candidates` is never empty, so something was tried.
    Err(taken.unwrap_or(SubnetError::NoneFree { tried: 0, last: Ipv4Net::default(), holder: "nobody".to_owned() }))
}

/// 64 networks of 192.168.64.0/18, then 256 of 172.24.0.0/16 and 256 of 10.201.0.0/16, each block entered at a place that
/// follows from the name: clusters of different names rarely meet, and the same name comes out the same everywhere.
fn candidates(cluster: &ClusterName) -> impl Iterator<Item = Ipv4Net> {
    let [a, b, ..] = *identity::uuid(cluster, "subnet").as_bytes();
    let start = u16::from_be_bytes([a, b]);
    let block = move |first: [u8; 2], low: u16, size: u16| {
        (0..size).map(move |i| {
            // Below `low + size`, which is at most 256.
            let third = u8::try_from(low + (start % size + i) % size).unwrap_or(u8::MAX);
            Ipv4Net::new_assert(Ipv4Addr::new(first[0], first[1], third, 0), 24)
        })
    };
    block([192, 168], 64, 64).chain(block([172, 24], 0, 256)).chain(block([10, 201], 0, 256))
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

fn overlapping(ranges: &[Ipv4Net], candidate: Ipv4Net) -> Option<Ipv4Net> {
    ranges.iter().copied().find(|range| overlap(*range, candidate))
}

/// Default routes, and the halves that VPNs use in their place, hold no particular network.
fn counts(route: &HostRoute) -> bool {
    route.net.prefix_len() >= 8
}

/// Routes of this machine (of the network namespace we run in). None where the kernel shows none: a route missed here is
/// found later, when libvirt refuses to start a network over it.
pub fn host_routes() -> Vec<HostRoute> {
    std::fs::read_to_string("/proc/net/route").map(|text| parse_routes(&text)).unwrap_or_default()
}

/// The kernel's table: interface, destination and mask as the hex of a little-endian word. Lines that are none are skipped.
fn parse_routes(text: &str) -> Vec<HostRoute> {
    let address = |hex: &str| u32::from_str_radix(hex, 16).ok().map(|word| Ipv4Addr::from(word.to_le_bytes()));
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (interface, destination, mask) = (fields.first()?, address(fields.get(1)?)?, address(fields.get(7)?)?);
            let net = Ipv4Net::with_netmask(destination, mask).ok()?;
            Some(HostRoute { net: net.trunc(), interface: (*interface).to_owned() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Mark;
    use std::collections::BTreeSet;
    use uuid::Uuid;

    fn net(text: &str) -> Ipv4Net {
        text.parse().expect("net")
    }
    fn cluster(name: &str) -> ClusterName {
        ClusterName::parse(name).expect("name")
    }
    fn route(text: &str, interface: &str) -> HostRoute {
        HostRoute { net: net(text), interface: interface.to_owned() }
    }
    fn network(name: &str, bridge: &str, subnet: &str, owner: Option<&str>) -> NetworkSeen {
        NetworkSeen {
            name: name.to_owned(),
            uuid: Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()),
            active: false,
            bridge: Some(bridge.to_owned()),
            subnets: vec![net(subnet)],
            mark: owner.map(|name| Mark { cluster: cluster(name), instance: Uuid::nil(), state_dir: String::new() }),
        }
    }

    #[test]
    fn the_name_decides_and_what_is_taken_is_skipped_in_order() {
        let lab = cluster("lab");
        let first = choose_subnet(None, &[], &[], &lab, &[]).expect("free");
        assert_eq!(first, choose_subnet(None, &[], &[], &lab, &[]).expect("free"), "deterministic");
        assert!(net("192.168.64.0/18").contains(&first));
        assert_ne!(first, choose_subnet(None, &[], &[], &cluster("other"), &[]).expect("free"));

        let order: Vec<_> = candidates(&lab).collect();
        assert_eq!(order[0], first);
        assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 64 + 256 + 256, "no candidate twice");
        let taken_by_route = choose_subnet(None, &[HostRoute { net: first, interface: "eth0".into() }], &[], &lab, &[]);
        assert_eq!(taken_by_route, Ok(order[1]));
        let host_bits = format!("{}/25", first.network());
        let taken_by_network = choose_subnet(None, &[], &[network("default", "virbr0", &host_bits, None)], &lab, &[]);
        assert_eq!(taken_by_network, Ok(order[1]), "an inactive network that covers half of it counts");
        assert_eq!(
            choose_subnet(None, &[], &[], &lab, &[net("192.168.0.0/16")]),
            Ok(order[64]),
            "the next block, past the reserved one"
        );
    }

    #[test]
    fn defaults_hold_nothing_and_everything_taken_is_an_error_that_names_the_holder() {
        let lab = cluster("lab");
        let free = choose_subnet(None, &[], &[], &lab, &[]).expect("free");
        let defaults = [route("0.0.0.0/0", "eth0"), route("0.0.0.0/1", "tun0"), route("128.0.0.0/1", "tun0")];
        assert_eq!(choose_subnet(None, &defaults, &[], &lab, &[]), Ok(free));
        let all = [route("192.168.0.0/16", "vpn0"), route("172.16.0.0/12", "vpn0"), route("10.0.0.0/8", "vpn0")];
        let error = choose_subnet(None, &all, &[], &lab, &[]).expect_err("all taken");
        assert!(matches!(&error, SubnetError::NoneFree { tried: 576, holder, .. } if holder.contains("vpn0")), "{error}");
    }

    #[test]
    fn a_wanted_network_that_is_taken_is_refused_with_its_holder() {
        let lab = cluster("lab");
        let wanted = net("192.168.122.0/24");
        assert_eq!(choose_subnet(Some(wanted), &[], &[], &lab, &[]), Ok(wanted));
        let networks = [network("default", "virbr0", "192.168.122.0/24", None)];
        let said = choose_subnet(Some(wanted), &[], &networks, &lab, &[]).expect_err("taken").to_string();
        assert!(said.contains("192.168.122.0/24") && said.contains("libvirt network default"), "{said}");
        let said =
            choose_subnet(Some(wanted), &[route("192.168.122.5/32", "wg0")], &[], &lab, &[]).expect_err("taken").to_string();
        assert!(said.contains("192.168.122.5/32") && said.contains("wg0"), "{said}");
    }

    #[test]
    fn the_clusters_own_network_is_kept_and_its_own_route_is_no_obstacle() {
        let lab = cluster("lab");
        let networks = [network("ktcw-lab", "ktabc", "192.168.99.0/24", Some("lab"))];
        let routes = [route("192.168.99.0/24", "ktabc")];
        assert_eq!(choose_subnet(None, &routes, &networks, &lab, &[]), Ok(net("192.168.99.0/24")));
        assert_eq!(choose_subnet(Some(net("192.168.99.0/24")), &routes, &networks, &lab, &[]), Ok(net("192.168.99.0/24")));
        assert!(choose_subnet(Some(net("192.168.99.0/24")), &routes, &networks, &cluster("other"), &[]).is_err());
    }

    #[test]
    fn the_kernels_table_is_read() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    virbr0\t007AA8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                    broken line\n";
        assert_eq!(parse_routes(text), [route("0.0.0.0/0", "eth0"), route("192.168.122.0/24", "virbr0")]);
    }
}
