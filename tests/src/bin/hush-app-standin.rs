//! A stand-in for another model server, for the tests of the sidecar: see tests/src/apps/standins.

fn main() -> anyhow::Result<()> {
    hush_tests::apps::standins::run()
}
