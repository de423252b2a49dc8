//! The guest of the probe: a first program of 188 bytes that says one line on the console and powers off.
//! `probe` boots the cluster's kernel with it; where the cluster has an initrd, it is appended to that, so both are proved.
//! Everything is written here by hand, so the probe needs no compiler, no busybox and no disk.

use crate::host::HostError;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The line on the console that says user space was reached.
pub const SAID: &str = "ktcw-init-ok";

/// Writes the archive (after a copy of `initrd`, if there is one) and returns where.
pub fn write(dir: &Path, initrd: Option<&Path>) -> Result<PathBuf, HostError> {
    let path = dir.join("initrd");
    let mut bytes = match initrd {
        Some(initrd) => std::fs::read(initrd).map_err(|source| HostError::File { path: initrd.display().to_string(), source })?,
        None => Vec::new(),
    };
    // The kernel takes archives one after the other, each at a multiple of four; of two files of a name the later counts.
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(archive(&program()));
    File::create(&path)
        .and_then(|mut file| file.write_all(&bytes))
        .map_err(|source| HostError::File { path: path.display().to_string(), source })?;
    Ok(path)
}

/// A cpio archive (format "newc") with `program` as `/init`.
fn archive(program: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, mode, data) in [("init", 0o100_755, program), ("TRAILER!!!", 0, &[])] {
        // Thirteen numbers of eight hex digits: inode, mode, owner, group, links, time, size, four device numbers, length
        // of the name with its NUL, checksum.
        let fields = [0, mode, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
        out.extend(b"070701");
        for field in fields {
            out.extend(format!("{field:08x}").bytes());
        }
        out.extend(name.bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend(data);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// An x86-64 ELF: one header, one segment, and the code below.
fn program() -> Vec<u8> {
    const LOAD: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let said = format!("{SAID}\n");
    let code = code(&said);
    let size = HEADERS + code.len() as u64;
    let mut elf = Vec::new();
    // 64 bit, little-endian, System V; executable, x86-64; entry right after the headers.
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    for word in [LOAD + HEADERS, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    // One loadable segment, readable and executable: the whole file.
    for half in [1u32, 5] {
        elf.extend(half.to_le_bytes());
    }
    for word in [0, LOAD, LOAD, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// `write(1, said); reboot(POWER_OFF); for (;;) pause();` with the text after it.
fn code(said: &str) -> Vec<u8> {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    const MOV_EAX: u8 = 0xb8;
    const MOV_EDX: u8 = 0xba;
    const MOV_ESI: u8 = 0xbe;
    const MOV_EDI: u8 = 0xbf;
    /// `lea rsi, [rip + offset]`, which ends where the offset counts from.
    const LEA_RSI: [u8; 3] = [0x48, 0x8d, 0x35];
    let mov = |register: u8, value: u32| [&[register][..], &value.to_le_bytes()].concat();
    let length = u32::try_from(said.len()).unwrap_or(0);

    let before = [mov(MOV_EAX, 1), mov(MOV_EDI, 1)].concat();
    let mut after = [mov(MOV_EDX, length), SYSCALL.to_vec()].concat();
    // reboot(2) with its two magic numbers and the command for power off.
    after.extend([mov(MOV_EAX, 169), mov(MOV_EDI, 0xfee1_dead), mov(MOV_ESI, 0x2812_1969), mov(MOV_EDX, 0x4321_fedc)].concat());
    after.extend(SYSCALL);
    // pause(2), and again: the jump goes back over itself, the call and the load.
    after.extend([&mov(MOV_EAX, 34)[..], &SYSCALL, &[0xeb, 0xf7]].concat());
    let offset = u32::try_from(after.len()).unwrap_or(0);
    [&before[..], &LEA_RSI, &offset.to_le_bytes(), &after, said.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_program_runs_and_says_its_line() {
        let dir = tempfile::tempdir().expect("dir");
        let mut elf = program();
        assert_eq!(elf.len(), 188);
        // Not here: on this machine the call to reboot becomes exit_group(0).
        let reboot = elf.windows(5).position(|window| window == [0xb8, 169, 0, 0, 0]).expect("the call");
        elf[reboot + 1] = 231;
        let edi = elf.windows(5).position(|window| window == [0xbf, 0xad, 0xde, 0xe1, 0xfe]).expect("its argument");
        elf[edi + 1..edi + 5].fill(0);
        let path = crate::accel::tests::executable(dir.path(), &elf);
        let output = Command::new(&path).output().expect("runs");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{SAID}\n"));
    }

    #[test]
    fn the_archive_follows_the_clusters_initrd_at_a_multiple_of_four() {
        let dir = tempfile::tempdir().expect("dir");
        let theirs = dir.path().join("theirs");
        std::fs::write(&theirs, b"12345").expect("write");
        let both = std::fs::read(write(dir.path(), Some(&theirs)).expect("writes")).expect("read");
        assert_eq!((&both[..8], &both[8..14]), (&b"12345\0\0\0"[..], &b"070701"[..]));
        let alone = archive(&program());
        assert_eq!(&both[8..], &alone[..]);
        assert_eq!(alone.len() % 4, 0);
        assert!(alone.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
