//! Golden plans: what a change does to a cluster shows up in `tests/snapshots/`.

#![expect(clippy::expect_used, reason = "a test fails where it finds a fault")]

use ktcw_vm::apply::{Inventory, steps};
use ktcw_vm::host::Mark;
use ktcw_vm::host::xml::{Layout, domain_xml};
use ktcw_vm::plan::user_data::preview;
use ktcw_vm::plan::{Accel, Content, CpuModel, Plan, plan, render};
use ktcw_vm::spec::{NodeName, RawSpec, validate};
use std::collections::BTreeSet;

#[path = "fixtures/sample_plan.rs"]
mod samples;

fn sample(etcd: u64, workers: u64, accel: Accel) -> Plan {
    samples::plan("ktcw", etcd, workers, accel)
}

fn kvm() -> Accel {
    Accel::Kvm { cpu: CpuModel::HostPassthrough }
}

fn text(plan: &Plan) -> String {
    render::text(plan, &steps(plan, &Inventory::default()))
}

#[test]
fn plans_of_three_sizes() {
    insta::assert_snapshot!("solo", text(&sample(1, 0, Accel::Tcg)));
    insta::assert_snapshot!("ha3", text(&sample(3, 2, kvm())));
    insta::assert_snapshot!("ha5", text(&sample(5, 3, kvm())));
}

#[test]
fn every_text_file_of_a_controller_and_a_worker() {
    let plan = sample(3, 2, kvm());
    for name in [NodeName::controller(0), NodeName::worker(1)] {
        let node = plan.node(&name).expect("planned");
        let mut all = String::new();
        for file in &node.files {
            let text = match &file.content {
                Content::Text { text } => text.clone(),
                Content::Pki { item } => format!("<{item}>\n"),
            };
            all.push_str(&format!("=== {:04o} {}\n{text}", file.mode, file.path));
        }
        insta::assert_snapshot!(format!("files-{name}"), all);
    }
}

#[test]
fn what_cloud_init_and_libvirt_are_told() {
    let (ha3, solo) = (sample(3, 2, kvm()), sample(1, 0, Accel::Tcg));
    let layout = Layout {
        pool_dir: "/pools/ktcw".to_owned(),
        image_dir: "/pools/images".to_owned(),
        firmware: Some("/usr/share/qemu/qboot.rom".to_owned()),
        direct_io: true,
    };
    for (of, plan, name) in
        [("ha3", &ha3, NodeName::controller(0)), ("ha3", &ha3, NodeName::worker(1)), ("solo", &solo, NodeName::controller(0))]
    {
        let node = plan.node(&name).expect("planned");
        let seed = preview(node, &plan.network, &plan.pod_routes()).expect("made");
        // The files are in `files-*` already: of the user-data, what is around them.
        let (told, _) = seed.user_data.expose().split_once("write_files:").expect("there are files");
        let instance = uuid::Uuid::from_u128(7);
        let mark = Mark { cluster: plan.cluster.clone(), instance, state_dir: "/state/ktcw".to_owned() };
        let xml = domain_xml(&node.domain, &plan.storage, &layout, &name, &mark).expect("renders");
        let all = format!("{}=== user-data\n{told}=== network-config\n{}=== domain\n{xml}", seed.meta_data, seed.network_config);
        insta::assert_snapshot!(format!("machine-{of}-{name}"), all);
    }
}

#[test]
fn a_root_disk_larger_than_the_images_is_grown_at_boot() {
    let told = |root_disk| {
        let spec = validate(&RawSpec { root_disk, ..RawSpec::default() }).expect("valid");
        let plan = plan(&spec, &samples::resolved(kvm()));
        preview(&plan.nodes[0], &plan.network, &[]).expect("made").user_data.expose().contains("resize2fs")
    };
    assert!(told(Some(20)) && !told(Some(10)) && !told(None));
}

#[test]
fn the_same_spec_gives_the_same_plan_and_adding_a_worker_changes_no_other_node() {
    assert_eq!(sample(3, 2, kvm()), sample(3, 2, kvm()));
    let (two, three) = (sample(3, 2, kvm()), sample(3, 3, kvm()));
    for node in &two.nodes {
        assert_eq!(three.node(&node.name), Some(node), "{}", node.name);
    }
}

#[test]
fn every_address_uuid_and_mac_of_the_largest_cluster_is_its_own() {
    let plan = sample(7, 50, kvm());
    let unique = |values: Vec<String>| values.len() == values.iter().collect::<BTreeSet<_>>().len();
    assert!(unique(plan.nodes.iter().map(|n| n.ip.to_string()).chain([plan.network.vip.to_string()]).collect()));
    assert!(unique(plan.nodes.iter().map(|n| n.uuid.to_string()).collect()));
    assert!(unique(plan.nodes.iter().map(|n| n.mac.clone()).collect()));
    assert!(unique(plan.nodes.iter().filter_map(|n| n.pod_subnet).map(|n| n.to_string()).collect()));
    for node in &plan.nodes {
        assert!(plan.network.subnet.contains(&node.ip));
        assert!(node.pod_subnet.is_none_or(|pods| plan.network.pod_cidr.contains(&pods)));
    }
}

#[test]
fn no_secret_is_in_a_plan_and_every_secret_file_is_private() {
    let plan = sample(3, 2, kvm());
    let json = serde_json::to_string(&plan).expect("JSON");
    assert!(!json.contains("PRIVATE KEY"));
    for file in plan.nodes.iter().flat_map(|node| &node.files) {
        if let Content::Pki { item } = &file.content {
            assert_eq!(file.mode == 0o600, item.is_secret(), "{}", file.path);
        }
    }
}
