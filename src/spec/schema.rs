//! The JSON schema of `cluster.toml`, for editors: as strict as a schema can be.
//! `plan --config-schema` prints it; its bounds are the constants that `validate` judges by.
//! What it cannot say is whether ranges overlap, or a prefix cuts through its address: the parser says that.

use super::validate::{Bound, CPUS, ETCD_DISK, MEMORY_OF_A_CONTROLLER, MEMORY_OF_A_WORKER, ROOT_DISK};
use super::{MAX_ETCD, MAX_WORKERS, RawSpec};
use serde_json::{Map, Value, json};

/// Published by `ktcw-vm plan --config-schema`.
pub fn schema() -> schemars::Schema {
    let mut schema = schemars::schema_for!(RawSpec);
    let root = schema.ensure_object();
    if let Some(Value::Object(properties)) = root.get_mut("properties") {
        for (key, property) in properties.iter_mut().filter_map(|(key, property)| Some((key, property.as_object_mut()?))) {
            without_null(property);
            property.extend(bounds(key));
        }
    }
    root.extend(relations());
    schema
}

/// TOML has no null: a key is there or it is not.
fn without_null(property: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = property.get("type") {
        let kept = types.iter().find(|kind| *kind != "null").cloned();
        property.extend(kept.map(|kind| ("type".to_owned(), kind)));
    }
    if let Some(Value::Array(any)) = property.remove("anyOf") {
        let kept = any.into_iter().find(|one| one["type"] != "null");
        if let Some(Value::Object(one)) = kept {
            property.extend(one);
        }
    }
}

/// What one key may be.
fn bounds(key: &str) -> Map<String, Value> {
    const OCTET: &str = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
    const OF_172: &str = "172\\.(1[6-9]|2[0-9]|3[01])";
    let within = |bound: &Bound| json!({ "minimum": bound.low, "maximum": bound.high });
    let said = match key {
        "cluster" => json!({ "pattern": "^[a-z]([a-z0-9-]{0,29}[a-z0-9])?$", "maxLength": 31 }),
        "etcd" => json!({ "enum": (1..=MAX_ETCD).step_by(2).collect::<Vec<_>>() }),
        "control-planes" => json!({ "minimum": 1, "maximum": MAX_ETCD }),
        "workers" => json!({ "minimum": 0, "maximum": MAX_WORKERS }),
        "controller-mem" => within(&MEMORY_OF_A_CONTROLLER),
        "worker-mem" => within(&MEMORY_OF_A_WORKER),
        "cpus" => within(&CPUS),
        "etcd-disk" => within(&ETCD_DISK),
        "root-disk" => within(&ROOT_DISK),
        "subnet" => json!({ "pattern": format!("^(10\\.{OCTET}|{OF_172}|192\\.168)\\.{OCTET}\\.0/24$") }),
        "pod-cidr" => json!({ "pattern": format!("^(10\\.{OCTET}|{OF_172}|192\\.168)\\.0\\.0/16$") }),
        "service-cidr" => json!({
            "pattern": format!("^((10\\.{OCTET}|{OF_172})\\.{OCTET}\\.0/(1[2-9]|2[0-4])|192\\.168\\.{OCTET}\\.0/(1[6-9]|2[0-4]))$"),
        }),
        "kernel-args" => json!({ "pattern": "^[ -~]*$", "maxLength": 1024 }),
        _ => json!({}),
    };
    said.as_object().cloned().unwrap_or_default()
}

/// What keys ask of each other, as far as the file says both.
fn relations() -> Map<String, Value> {
    let at_most = |etcd: u8| json!({ "properties": { "control-planes": { "maximum": etcd } } });
    let mut all = vec![json!({ "if": { "not": { "required": ["etcd"] } }, "then": at_most(3) })];
    for etcd in (1..MAX_ETCD).step_by(2) {
        all.push(json!({
            "if": { "required": ["etcd"], "properties": { "etcd": { "const": etcd } } },
            "then": at_most(etcd),
        }));
    }
    let said = json!({
        "allOf": all,
        "dependentRequired": { "initrd": ["kernel"], "kernel-args": ["kernel"] },
    });
    said.as_object().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{parse_config, validate};

    /// What the parser and all that comes after it in the same file make of a text.
    fn parsed(text: &str) -> bool {
        let (raw, errors) = parse_config(text);
        errors.is_empty() && validate(&raw).is_ok()
    }

    fn judged(validator: &jsonschema::Validator, text: &str) -> bool {
        let value: toml::Value = toml::from_str(text).expect("TOML");
        validator.is_valid(&serde_json::to_value(value).expect("JSON"))
    }

    fn validator() -> jsonschema::Validator {
        let schema = schema().to_value();
        jsonschema::meta::validate(&schema).expect("a schema");
        jsonschema::validator_for(&schema).expect("a schema")
    }

    /// One at a time beside an empty file, which is good: each line is judged by itself.
    const GOOD: &[&str] = &[
        "",
        "cluster = \"k\"",
        "cluster = \"a23456789012345678901234567890b\"",
        "cluster = \"lab-2\"",
        "etcd = 1",
        "etcd = 7",
        "etcd = 1\ncontrol-planes = 1",
        "control-planes = 3",
        "etcd = 5\ncontrol-planes = 5",
        "etcd = 7\ncontrol-planes = 7",
        "workers = 0",
        "workers = 50",
        "isolated = true",
        "subnet = \"192.168.9.0/24\"",
        "subnet = \"10.255.0.0/24\"",
        "subnet = \"172.31.255.0/24\"",
        "pod-cidr = \"10.7.0.0/16\"",
        "pod-cidr = \"192.168.0.0/16\"",
        "pod-cidr = \"172.16.0.0/16\"",
        "service-cidr = \"10.96.0.0/12\"",
        "service-cidr = \"10.97.3.0/24\"",
        "service-cidr = \"192.168.0.0/16\"",
        "service-cidr = \"172.16.0.0/12\"",
        "controller-mem = 768",
        "controller-mem = 65536",
        "worker-mem = 512",
        "worker-mem = 65536",
        "cpus = 1",
        "cpus = 16",
        "etcd-disk = 1",
        "etcd-disk = 64",
        "root-disk = 10",
        "root-disk = 512",
        "accel = \"auto\"",
        "accel = \"kvm\"",
        "accel = \"tcg\"",
        "kernel = \"vmlinux\"",
        "kernel = \"vmlinux\"\ninitrd = \"initrd.img\"\nkernel-args = \"quiet a=b ~\"",
        "kernel = \"vmlinux\"\nkernel-args = \"\"",
    ];

    const BAD: &[&str] = &[
        "cluster = \"\"",
        "cluster = \"2lab\"",
        "cluster = \"Lab\"",
        "cluster = \"a/b\"",
        "cluster = \"a-\"",
        "cluster = \"é\"",
        "cluster = \"a234567890123456789012345678901b\"",
        "cluster = \"a\\n\"",
        "cluster = 3",
        "etcd = 0",
        "etcd = 2",
        "etcd = 9",
        "etcd = -1",
        "etcd = \"three\"",
        "etcd = 2.5",
        "control-planes = 0",
        "control-planes = 4",
        "etcd = 1\ncontrol-planes = 2",
        "etcd = 5\ncontrol-planes = 6",
        "workers = 51",
        "workers = -1",
        "workerz = 1",
        "isolated = \"true\"",
        "isolated = 1",
        "subnet = \"8.8.8.0/24\"",
        "subnet = \"192.168.5.7/24\"",
        "subnet = \"192.168.4.0/22\"",
        "subnet = \"192.168.256.0/24\"",
        "subnet = \"192.168.04.0/24\"",
        "subnet = \"172.32.0.0/24\"",
        "subnet = \"fd00::/64\"",
        "subnet = \"everything\"",
        "subnet = \" 192.168.9.0/24\"",
        "subnet = \"\"",
        "pod-cidr = \"10.7.1.0/16\"",
        "pod-cidr = \"10.0.0.0/8\"",
        "pod-cidr = \"192.169.0.0/16\"",
        "service-cidr = \"10.96.0.0/25\"",
        "service-cidr = \"10.0.0.0/11\"",
        "service-cidr = \"10.96.0.1/16\"",
        "service-cidr = \"192.168.0.0/15\"",
        "controller-mem = 767",
        "controller-mem = 65537",
        "worker-mem = 511",
        "worker-mem = \"1 GiB\"",
        "cpus = 0",
        "cpus = 17",
        "etcd-disk = 0",
        "etcd-disk = 65",
        "root-disk = 9",
        "root-disk = 513",
        "accel = \"fast\"",
        "accel = \"KVM\"",
        "accel = true",
        "initrd = \"initrd.img\"",
        "kernel-args = \"quiet\"",
        "kernel = \"k\"\nkernel-args = \"a\\nb\"",
        "kernel = \"k\"\nkernel-args = \"é\"",
        "kernel = 1",
        "[cluster]\nname = \"k\"",
        "etcd = [3]",
    ];

    #[test]
    fn the_schema_and_the_parser_judge_every_file_alike() {
        let validator = validator();
        for (texts, good) in [(GOOD, true), (BAD, false)] {
            for text in texts {
                assert_eq!(parsed(text), good, "the parser: {text}");
                assert_eq!(judged(&validator, text), good, "the schema: {text}");
            }
        }
        let long = |length: usize| format!("kernel = \"k\"\nkernel-args = \"{}\"", "a".repeat(length));
        for (text, good) in [(long(1024), true), (long(1025), false)] {
            assert_eq!((parsed(&text), judged(&validator, &text)), (good, good));
        }
    }

    /// Every number that has a bound, on both sides of it.
    #[test]
    fn both_have_the_same_bounds() {
        let validator = validator();
        let keys = ["etcd", "control-planes", "workers", "controller-mem", "worker-mem", "cpus", "etcd-disk", "root-disk"];
        for key in keys {
            for number in (0..70_u64).chain([511, 512, 513, 767, 768, 769, 65_535, 65_536, 65_537, 1 << 40]) {
                let text = format!("{key} = {number}");
                assert_eq!(parsed(&text), judged(&validator, &text), "{text}");
            }
        }
    }

    /// What no schema can say is said by the parser, and this is all of it.
    #[test]
    fn only_the_parser_knows_where_ranges_lie() {
        let validator = validator();
        for text in [
            "subnet = \"10.244.7.0/24\"",
            "pod-cidr = \"10.96.0.0/16\"",
            "service-cidr = \"10.244.0.0/20\"",
            "service-cidr = \"10.97.0.0/12\"",
        ] {
            assert!(judged(&validator, text) && !parsed(text), "{text}");
        }
    }

    /// Every key has its words, and no other key is let pass.
    #[test]
    fn the_schema_is_closed_and_every_key_is_described() {
        let schema = schema().to_value();
        assert_eq!(schema["additionalProperties"], false);
        let properties = schema["properties"].as_object().expect("properties");
        assert_eq!(properties.len(), 17);
        for (key, property) in properties {
            assert!(property["description"].is_string(), "{key}");
            assert!(!property.to_string().contains("null"), "{key}: {property}");
        }
    }
}
