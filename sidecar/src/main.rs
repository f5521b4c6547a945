//! `hush-sidecar`: reads the command line and runs the sidecar.

fn main() {
    hush_log::install_panic_hook();
}
