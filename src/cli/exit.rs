//! Exit codes, documented and constant: scripts depend on them.

/// All went well.
pub const OK: u8 = 0;
/// Something failed; the message says what was left behind.
pub const FAILED: u8 = 1;
/// The command line or the config file cannot be accepted. Nothing was touched.
pub const USAGE: u8 = 2;
/// A check or a drill failed.
pub const CHECK_FAILED: u8 = 3;
/// A drill proved nothing: its fault or its load was not shown to have happened.
pub const INVALID: u8 = 4;
/// The host cannot carry it: no QEMU, no libvirt, no memory, a name taken. Nothing was made.
pub const HOST: u8 = 69;
/// Another process works on the cluster, or has changed it since it was read. Nothing was done.
pub const BUSY: u8 = 75;
/// Ctrl-C.
pub const INTERRUPTED: u8 = 130;
