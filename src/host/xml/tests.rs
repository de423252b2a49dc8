//! Rendered XML parses, says what the plan says, and carries any text through unharmed.

use super::*;
use crate::host::samples::{controller as plan, layout, mark_in as mark, network as network_plan, storage};
use roxmltree::Document;

/// Text that breaks every careless writer: quotes, markup, an entity, a template, line ends, controls and non-ASCII.
const NASTY: &str = "/home/o'hara \"x\" <b>&amp;]]>{{ 7*7 }}\n\tü%41\u{1}%/\u{ffff}state";

fn render(plan: &DomainPlan, layout: &Layout, mark: &Mark) -> String {
    domain_xml(plan, &storage(), layout, &NodeName::controller(0), mark).expect("renders")
}

#[test]
fn a_controller_in_full() {
    let xml = render(&plan(Accel::Kvm { cpu: CpuModel::HostPassthroughNoArchCapabilities }), &layout(), &mark("/state/lab"));
    insta::assert_snapshot!("domain_kvm", xml);
}

#[test]
fn networks_pools_and_volumes_in_full() {
    insta::assert_snapshot!("network_nat", network_xml(&network_plan(false), &mark("/state/lab")).expect("renders"));
    insta::assert_snapshot!("network_isolated", network_xml(&network_plan(true), &mark("/state/lab")).expect("renders"));
    insta::assert_snapshot!("pool", pool_xml("ktcw-lab", Uuid::from_u128(1), "/pools/lab.7").expect("renders"));
    let overlay = NewVolume {
        name: "controller-0-root.qcow2",
        capacity: 10 << 30,
        format: VolumeFormat::Qcow2,
        backing: Some("/pools/images/base-0123.qcow2"),
        public: false,
    };
    insta::assert_snapshot!("volume_overlay", volume_xml(&overlay).expect("renders"));
}

#[test]
fn acceleration_decides_type_and_cpu() {
    for (accel, domain_type, mode, inside) in [
        (Accel::Tcg, "qemu", "custom", Some("model")),
        (Accel::Kvm { cpu: CpuModel::HostPassthrough }, "kvm", "host-passthrough", None),
        (Accel::Kvm { cpu: CpuModel::HostPassthroughNoArchCapabilities }, "kvm", "host-passthrough", Some("feature")),
        (Accel::Kvm { cpu: CpuModel::Nehalem }, "kvm", "custom", Some("model")),
    ] {
        let xml = render(&plan(accel.clone()), &layout(), &mark("/s"));
        let document = Document::parse(&xml).expect("XML");
        let root = document.root_element();
        let cpu = root.children().find(|node| node.has_tag_name("cpu")).expect("cpu");
        let child = cpu.children().find(|node| node.is_element()).map(|node| node.tag_name().name());
        assert_eq!((root.attribute("type"), cpu.attribute("mode"), child), (Some(domain_type), Some(mode), inside), "{accel:?}");
    }
}

#[test]
fn what_the_host_lacks_is_left_out() {
    let mut bare = layout();
    bare.firmware = None;
    bare.direct_io = false;
    let mut storage = storage();
    storage.initrd_volume = None;
    let xml = domain_xml(&plan(Accel::Tcg), &storage, &bare, &NodeName::controller(0), &mark("/s")).expect("renders");
    for absent in ["<loader", "<initrd", "cache='none'", "unsafe"] {
        assert!(!xml.contains(absent), "{absent}");
    }
    assert!(!render(&plan(Accel::Tcg), &layout(), &mark("/s")).contains("unsafe"));
}

#[test]
fn any_text_comes_through_unharmed() {
    let mut plan = plan(Accel::Tcg);
    plan.cmdline = "a=\"<&>'\" b\nc\u{1}".into();
    let xml = render(&plan, &layout(), &mark(NASTY));
    let document = Document::parse(&xml).expect("well-formed whatever the text");
    let cmdline = document.descendants().find(|node| node.has_tag_name("cmdline")).and_then(|node| node.text());
    assert_eq!(cmdline, Some("a=\"<&>'\" b c "));
    assert_eq!(domain(&xml).expect("parses").mark, Some(mark(NASTY)));

    let mut network_plan = network_plan(false);
    network_plan.name = "a'b\"<c>&".into();
    let parsed = network(&network_xml(&network_plan, &mark(NASTY)).expect("renders")).expect("parses");
    assert_eq!((parsed.name.as_str(), parsed.mark), ("a'b\"<c>&", Some(mark(NASTY))));
}

#[test]
fn the_digest_follows_every_change_and_nothing_else() {
    let digest =
        |plan: &DomainPlan, layout: &Layout| domain(&render(plan, layout, &mark("/s"))).expect("parses").digest.expect("digest");
    let first = digest(&plan(Accel::Tcg), &layout());
    assert_eq!(first, digest(&plan(Accel::Tcg), &layout()));
    let mut bigger = plan(Accel::Tcg);
    bigger.memory_mib += 1;
    assert_ne!(first, digest(&bigger, &layout()));
    let mut elsewhere = layout();
    elsewhere.pool_dir.push('x');
    assert_ne!(first, digest(&plan(Accel::Tcg), &elsewhere));
}

#[test]
fn what_libvirt_returns_is_read() {
    let theirs =
        domain("<domain type='kvm'><name>win</name><uuid>6b1ad7b2-5c0e-4b0e-9d42-0f4b4b4b4b4b</uuid></domain>").expect("parses");
    assert_eq!((theirs.name.as_str(), theirs.mark, theirs.node), ("win", None, None));
    // The prefix is libvirt's to choose; a broken mark is no mark.
    let prefixed = "<domain><name>lab-worker-1</name><uuid>6b1ad7b2-5c0e-4b0e-9d42-0f4b4b4b4b4b</uuid><metadata>\
        <x:cluster xmlns:x='https://ktcw-vm.invalid/ns/1' name='lab' instance='INSTANCE' node='worker-1' state-dir='/s' plan='ab'/>\
        </metadata></domain>";
    let ours = domain(&prefixed.replace("INSTANCE", &Uuid::from_u128(7).to_string())).expect("parses");
    assert_eq!((ours.mark, ours.node), (Some(mark("/s")), Some(NodeName::worker(1))));
    assert_eq!(domain(prefixed).expect("parses").mark, None);

    let net = network(
        "<network><name>default</name><uuid>6b1ad7b2-5c0e-4b0e-9d42-0f4b4b4b4b4b</uuid><bridge name='virbr0'/>\
         <ip address='192.168.122.1' netmask='255.255.255.0'><dhcp/></ip><ip family='ipv6' address='fd00::1' prefix='64'/>\
         <ip address='10.9.8.7' prefix='20'/><route address='172.31.0.0' prefix='16' gateway='10.9.8.1'/></network>",
    )
    .expect("parses");
    let subnets: Vec<String> = net.subnets.iter().map(ToString::to_string).collect();
    assert_eq!(subnets, ["192.168.122.0/24", "10.9.0.0/20", "172.31.0.0/16"]);

    let vol = volume(
        "<volume type='file'><name>a</name><capacity unit='bytes'>1024</capacity><physical unit='bytes'>512</physical>\
         <target><path>/p/a</path><format type='qcow2'/></target><backingStore><path>/p/b</path></backingStore></volume>",
    )
    .expect("parses");
    assert_eq!(
        (vol.capacity, vol.physical, vol.backing.as_deref(), vol.format.as_deref()),
        (1024, Some(512), Some("/p/b"), Some("qcow2"))
    );

    assert_eq!(
        kvm_listed(
            "<capabilities><guest><arch name='x86_64'><domain type='qemu'/><domain type='kvm'/></arch></guest></capabilities>"
        ),
        Ok(true)
    );
    assert_eq!(
        kvm_listed("<capabilities><guest><arch name='i686'><domain type='kvm'/></arch></guest></capabilities>"),
        Ok(false)
    );
    for broken in ["", "<domain", "<network/>", "<domain/>"] {
        assert!(domain(broken).is_err(), "{broken:?}");
    }
}
