//! The NoCloud disk: a seed's three documents as an ISO 9660 image labelled `cidata`, in memory.
//! `apply` uploads what it returns as a node's second disk; it is the only user of `hadris-iso`.
//! It writes no file (the image carries private keys) and knows nothing of what the documents say.

use crate::plan::user_data::Seed;
use hadris_iso::read::PathSeparator;
use hadris_iso::write::options::{CreationFeatures, IsoFormatOptions};
use hadris_iso::write::{InputEntry, InputMetadata, InputTree, IsoImageWriter};
use std::io::Cursor;

/// A label cloud-init's NoCloud source looks for.
pub const LABEL: &str = "cidata";

/// The three documents together, bytes. Ours are some tens of kB; a guest reads this at every boot.
pub const LIMIT: usize = 4 << 20;

const SECTOR: usize = 2048;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SeedDiskError {
    #[error("the seed is {bytes} bytes; at most {LIMIT} fit")]
    TooLarge { bytes: usize },
    #[error("the seed's ISO image cannot be written: {reason}")]
    Write { reason: String },
}

/// The image, a whole number of 2048-byte sectors. The same seed gives the same bytes.
pub fn iso(seed: &Seed) -> Result<Vec<u8>, SeedDiskError> {
    let files = [
        ("meta-data", seed.meta_data.as_str()),
        ("network-config", &seed.network_config),
        ("user-data", seed.user_data.expose()),
    ];
    let bytes = files.iter().map(|(_, text)| text.len()).sum();
    if bytes > LIMIT {
        return Err(SeedDiskError::TooLarge { bytes });
    }
    let metadata = InputMetadata { mode: Some(0o400), uid: Some(0), gid: Some(0), ..InputMetadata::default() };
    let entries = files.map(|(name, text)| InputEntry::file(name, text.as_bytes()).with_metadata(metadata));
    let tree = InputTree::new(PathSeparator::ForwardSlash, entries.into());
    let options = IsoFormatOptions {
        volume_name: LABEL.to_owned(),
        system_id: None,
        volume_set_id: None,
        publisher_id: None,
        preparer_id: None,
        application_id: None,
        sector_size: SECTOR,
        features: CreationFeatures::rock_ridge(),
        path_separator: PathSeparator::ForwardSlash,
        strict_charset: false,
    };
    let failed = |reason: String| SeedDiskError::Write { reason };
    let image = IsoImageWriter::create(Cursor::new(Vec::new()), tree, options).map_err(|error| failed(error.to_string()))?;
    let mut image = image.into_inner();
    image.resize(image.len().next_multiple_of(SECTOR), 0);
    fix_dates(&mut image).ok_or_else(|| failed("its directory is not where its volume descriptor says".to_owned()))?;
    Ok(image)
}

/// 2000-01-01 00:00 UTC, as volume descriptors and as directory records write it.
const VOLUME_DATE: &[u8; 17] = b"2000010100000000\0";
const RECORD_DATE: [u8; 7] = [100, 1, 1, 0, 0, 0, 0];

/// `hadris-iso` stamps the time of writing into the volume descriptor and every directory record. The time is no part of
/// what a node is told, and with it no two images would be equal. `None`: the image is not as ISO 9660 says.
fn fix_dates(image: &mut [u8]) -> Option<()> {
    let volume = image.get_mut(16 * SECTOR..17 * SECTOR)?;
    for date in [813, 830] {
        volume.get_mut(date..date + 17)?.copy_from_slice(VOLUME_DATE);
    }
    let root = volume.get_mut(156..190)?;
    root.get_mut(18..25)?.copy_from_slice(&RECORD_DATE);
    let number = |at: usize| Some(u32::from_le_bytes(root.get(at..at + 4)?.try_into().ok()?) as usize);
    let (start, length) = (number(2)? * SECTOR, number(10)?);
    let mut directory = image.get_mut(start..start + length)?;
    while let Some(&size) = directory.first().filter(|size| **size != 0) {
        let (record, rest) = directory.split_at_mut_checked(usize::from(size))?;
        record.get_mut(18..25)?.copy_from_slice(&RECORD_DATE);
        let name = usize::from(*record.get(32)?);
        // The system use area starts on an even byte.
        fix_time_stamps(record.get_mut((33 + name).next_multiple_of(2)..)?);
        directory = rest;
    }
    Some(())
}

/// Rock Ridge keeps times of its own: entries `TF`, a length, a version, flags, then dates.
fn fix_time_stamps(mut entries: &mut [u8]) {
    while let Some(&size) = entries.get(2).filter(|size| **size >= 4) {
        let Some((entry, rest)) = entries.split_at_mut_checked(usize::from(size)) else { return };
        if entry.starts_with(b"TF") {
            for date in entry.get_mut(5..).unwrap_or_default().chunks_exact_mut(RECORD_DATE.len()) {
                date.copy_from_slice(&RECORD_DATE);
            }
        }
        entries = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use std::process::Command;

    fn sample(size: usize) -> Seed {
        Seed {
            instance_id: "0123456789abcdef".to_owned(),
            meta_data: "instance-id: 0123456789abcdef\n".to_owned(),
            user_data: Secret::new(format!("#cloud-config\n{}", "# filler\n".repeat(size / 9))),
            network_config: "version: 2\n".to_owned(),
        }
    }

    /// Just enough ISO 9660 to say what a reader would find: (name, content) from the root directory's Rock Ridge names.
    fn read_back(image: &[u8]) -> (String, Vec<(String, Vec<u8>)>) {
        let volume = &image[16 * SECTOR..17 * SECTOR];
        assert_eq!(&volume[..7], b"\x01CD001\x01", "a primary volume descriptor, version 1");
        let number = |bytes: &[u8]| {
            let little = u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"));
            assert_eq!(little, u32::from_be_bytes(bytes[4..8].try_into().expect("4 bytes")), "both byte orders agree");
            little as usize
        };
        assert_eq!(number(&volume[80..]) * SECTOR, image.len(), "the volume is as large as it says");
        let extent = |record: &[u8]| image[number(&record[2..]) * SECTOR..][..number(&record[10..])].to_vec();
        let directory = extent(&volume[156..]);
        let (mut files, mut at) = (Vec::new(), 0);
        while directory[at] != 0 {
            let record = &directory[at..at + usize::from(directory[at])];
            if record[25] & 2 == 0 {
                let place = record.windows(2).position(|pair| pair == b"NM").expect("a Rock Ridge name");
                let name = &record[place + 5..place + usize::from(record[place + 2])];
                files.push((String::from_utf8(name.to_vec()).expect("a name"), extent(record)));
            }
            at += record.len();
        }
        (String::from_utf8(volume[40..72].to_vec()).expect("a label").trim_end().to_owned(), files)
    }

    #[test]
    fn the_image_holds_the_three_documents_under_the_label_cloud_init_looks_for() {
        for size in [0, 2034, 100_000] {
            let seed = sample(size);
            let image = iso(&seed).expect("fits");
            assert_eq!(image.len() % SECTOR, 0);
            let (label, mut files) = read_back(&image);
            files.sort();
            let expected = [
                ("meta-data", seed.meta_data.as_str()),
                ("network-config", &seed.network_config),
                ("user-data", seed.user_data.expose()),
            ];
            let found: Vec<_> =
                files.iter().map(|(name, bytes)| (name.as_str(), std::str::from_utf8(bytes).expect("text"))).collect();
            assert_eq!((label.as_str(), &found[..]), (LABEL, &expected[..]));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_whenever_it_is_made() {
        let first = iso(&sample(500)).expect("fits");
        let second = crate::plan::user_data::Seed { ..sample(500) };
        // The writer's clock has hundredths of a second: without fixed dates these two would differ.
        let start = std::time::Instant::now();
        while start.elapsed() < std::time::Duration::from_millis(1100) {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        assert!(first == iso(&second).expect("fits"));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let seed = sample(LIMIT);
        let bytes = seed.user_data.len() + seed.meta_data.len() + seed.network_config.len();
        assert_eq!(iso(&seed), Err(SeedDiskError::TooLarge { bytes }));
    }

    /// genisoimage's reader as a second opinion, where it is installed.
    #[test]
    fn isoinfo_reads_it_the_same_way() {
        let seed = sample(5000);
        let mut file = tempfile::NamedTempFile::new().expect("temp file");
        std::io::Write::write_all(&mut file, &iso(&seed).expect("fits")).expect("written");
        let isoinfo = |args: &[&str]| Command::new("isoinfo").arg("-i").arg(file.path()).args(args).output();
        let Ok(listing) = isoinfo(&["-R", "-l"]) else {
            assert!(std::env::var_os("CI").is_none(), "CI needs isoinfo (package genisoimage)");
            eprintln!("not run: there is no isoinfo (package genisoimage)");
            return;
        };
        let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
        for name in ["user-data", "meta-data", "network-config"] {
            let line = listing.lines().find(|line| line.trim_end().ends_with(name)).unwrap_or_else(|| panic!("{listing}"));
            assert!(line.trim_start().starts_with("-r--------") && line.contains("Jan  1 2000"), "{line}");
        }
        let content = isoinfo(&["-R", "-x", "/user-data"]).expect("runs").stdout;
        assert_eq!(content, seed.user_data.expose().as_bytes());
        let volume = String::from_utf8_lossy(&isoinfo(&["-d"]).expect("runs").stdout).into_owned();
        assert!(volume.contains("Volume id: cidata") && volume.contains("Rock Ridge"), "{volume}");
    }
}
