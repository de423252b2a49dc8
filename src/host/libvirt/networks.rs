//! Networks: observed, defined and active, removed; each change only after the mark was checked.
//! `LibvirtHost` calls it with a live connection.
//! It chooses no addresses; a network that guests hang on is never restarted behind their back.

use super::connection::{checked, is_absent, present, refused, unreadable};
use crate::host::{Done, HostError, Mark, NetworkSeen, guard, xml};
use crate::plan::NetworkPlan;
use virt::connect::Connect;
use virt::error::ErrorNumber;
use virt::network::Network;
use virt::sys;

const KIND: &str = "network";

/// All networks, ours and others'. One that vanishes meanwhile is left out.
pub fn observe(conn: &Connect) -> Result<Vec<NetworkSeen>, HostError> {
    let all = conn.list_all_networks(0).map_err(|error| refused("list", KIND, "(all)", &error))?;
    let mut seen = Vec::with_capacity(all.len());
    for network in all {
        let name = network.name().unwrap_or_default();
        if let (Some(found), Some(active)) = (describe(&network)?, present(network.is_active(), KIND, &name)?) {
            let (name, uuid, bridge, subnets, mark) = (found.name, found.uuid, found.bridge, found.subnets, found.mark);
            seen.push(NetworkSeen { name, uuid, active, bridge, subnets, mark });
        }
    }
    seen.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(seen)
}

/// The XML of ours, as it is now.
pub fn definitions(conn: &Connect, mark: &Mark) -> Result<Vec<(String, String)>, HostError> {
    let all = conn.list_all_networks(0).map_err(|error| refused("list", KIND, "(all)", &error))?;
    let mut found = Vec::new();
    for network in all {
        let Some(described) = describe(&network)? else { continue };
        if described.mark.is_some_and(|theirs| mark.owns(&theirs))
            && let Some(text) = present(network.xml_desc(0), KIND, &described.name)?
        {
            found.push((format!("{KIND} {}", described.name), text));
        }
    }
    Ok(found)
}

/// Defined as planned and active. An active one keeps the definition it was started with, so one that guests would see
/// change is `Differs`.
pub fn ensure(conn: &Connect, plan: &NetworkPlan, mark: &Mark) -> Result<Done, HostError> {
    if let Some(other) = present(conn.lookup_network_by_uuid(plan.uuid), KIND, &plan.name)?
        && let Some(found) = describe(&other)?
        && found.name != plan.name
    {
        guard(KIND, &found.name, found.mark.as_ref(), mark)?;
    }
    let text = xml::network_xml(plan, mark)?;
    let wanted = xml::network(&text).map_err(|reason| unreadable(KIND, &plan.name, reason))?;
    let network = match ours(conn, &plan.name, mark)? {
        Some((network, found)) if found.digest == wanted.digest && found.uuid == plan.uuid => {
            if active(&network, &plan.name)? {
                return Ok(Done::Unchanged);
            }
            network
        }
        Some((network, found)) => {
            if active(&network, &plan.name)? && (found.subnets != wanted.subnets || found.bridge != wanted.bridge) {
                let what =
                    format!("it is active with {} on {}", ranges(&found.subnets), found.bridge.as_deref().unwrap_or("no bridge"));
                return Err(HostError::Differs { kind: KIND, name: plan.name.clone(), what });
            }
            define(conn, &text, plan)?
        }
        None => define(conn, &text, plan)?,
    };
    if !active(&network, &plan.name)? {
        match network.create() {
            Ok(()) => {}
            // Somebody was faster.
            Err(_) if active(&network, &plan.name)? => {}
            Err(error) => return Err(refused("start", KIND, &plan.name, &error)),
        }
    }
    Ok(Done::Changed)
}

pub fn remove(conn: &Connect, name: &str, mark: &Mark) -> Result<Done, HostError> {
    let Some((network, _)) = ours(conn, name, mark)? else { return Ok(Done::Unchanged) };
    if active(&network, name)? {
        match network.destroy() {
            Ok(()) => {}
            Err(error) if is_absent(&error) || !active(&network, name)? => {}
            Err(error) => return Err(refused("stop", KIND, name, &error)),
        }
    }
    match network.undefine() {
        Ok(()) => Ok(Done::Changed),
        Err(error) if is_absent(&error) => Ok(Done::Changed),
        Err(error) => Err(refused("undefine", KIND, name, &error)),
    }
}

fn ranges(subnets: &[ipnet::Ipv4Net]) -> String {
    subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn define(conn: &Connect, text: &str, plan: &NetworkPlan) -> Result<Network, HostError> {
    checked(|| define_validated(conn, text)).map_err(|error| refused("define", KIND, &plan.name, &error))
}

/// `virNetworkDefineXMLFlags`, which the crate does not wrap: only with its flag does libvirt check the XML.
#[expect(unsafe_code, reason = "a C call the crate does not wrap")]
fn define_validated(conn: &Connect, text: &str) -> Result<Network, virt::error::Error> {
    let text = std::ffi::CString::new(text)?;
    // SAFETY: both pointers are valid for the call; a non-null result carries one reference, which `from_ptr` takes over.
    unsafe {
        let network = sys::virNetworkDefineXMLFlags(conn.as_ptr(), text.as_ptr(), sys::VIR_NETWORK_DEFINE_VALIDATE);
        if network.is_null() { Err(virt::error::Error::last_error()) } else { Ok(Network::from_ptr(network)) }
    }
}

fn ours(conn: &Connect, name: &str, mark: &Mark) -> Result<Option<(Network, xml::NetworkXml)>, HostError> {
    let Some(network) = present(conn.lookup_network_by_name(name), KIND, name)? else { return Ok(None) };
    let Some(found) = describe(&network)? else { return Ok(None) };
    guard(KIND, name, found.mark.as_ref(), mark)?;
    Ok(Some((network, found)))
}

/// The persistent definition; `None` when it vanished. Drivers that have no other than the live one are asked for that.
fn describe(network: &Network) -> Result<Option<xml::NetworkXml>, HostError> {
    let name = network.name().unwrap_or_default();
    let persistent = network
        .xml_desc(sys::VIR_NETWORK_XML_INACTIVE)
        .or_else(|error| if error.code().is(ErrorNumber::InvalidArg) { network.xml_desc(0) } else { Err(error) });
    match present(persistent, KIND, &name)? {
        Some(text) => xml::network(&text).map(Some).map_err(|reason| unreadable(KIND, &name, reason)),
        None => Ok(None),
    }
}

fn active(network: &Network, name: &str) -> Result<bool, HostError> {
    Ok(present(network.is_active(), KIND, name)?.unwrap_or(false))
}
