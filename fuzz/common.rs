//! What a fuzz target feeds: the parser of that name in `tests/hostile/targets.rs`, which the test suite feeds too.

#[path = "../tests/fixtures/sample_plan.rs"]
mod samples;
#[path = "../tests/hostile/targets.rs"]
mod targets;

pub fn run(name: &str, bytes: &[u8]) {
    let parser = targets::ALL.iter().find(|(known, _)| *known == name);
    parser.expect("a parser of that name").1(bytes);
}
