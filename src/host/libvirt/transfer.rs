//! Bytes into and out of volumes, through libvirt's streams: the same for a local libvirt and one far away.
//! `volumes`, `pools` and `console` call it.
//! It knows neither names nor marks, and resumes nothing: an upload that broke is made again by its caller.

use std::io::Read;
use virt::error::Error;
use virt::storage_pool::StoragePool;
use virt::storage_vol::StorageVol;
use virt::stream::Stream;

/// libvirt's protocol carries this much in one message; more would be cut anyway.
const CHUNK: usize = 256 * 1024;

/// More than any volume that is read whole.
pub const SMALL: u64 = 64 << 20;

/// Why an upload stopped.
#[derive(Debug)]
pub enum Broken {
    Libvirt(Error),
    /// The file could not be read.
    Source(std::io::Error),
    /// The file ended early.
    Short,
}

/// Writes `length` bytes of `source` to the start of `volume`.
pub fn upload(
    pool: &StoragePool,
    volume: &StorageVol,
    source: &mut dyn Read,
    length: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), Broken> {
    let conn = pool.connect().map_err(Broken::Libvirt)?;
    let stream = Stream::new(&conn, 0).map_err(Broken::Libvirt)?;
    volume.upload(&stream, 0, length, 0).map_err(Broken::Libvirt)?;
    match send_all(&stream, source, length, progress) {
        Ok(()) => stream.finish().map_err(Broken::Libvirt),
        Err(broken) => {
            // Its own failure would hide why.
            let _ = stream.abort();
            Err(broken)
        }
    }
}

fn send_all(stream: &Stream, source: &mut dyn Read, length: u64, progress: &mut dyn FnMut(u64, u64)) -> Result<(), Broken> {
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    progress(0, length);
    while done < length {
        let want = usize::try_from(length - done).unwrap_or(CHUNK).min(CHUNK);
        let space = buffer.get_mut(..want).unwrap_or_default();
        let got = source.read(space).map_err(Broken::Source)?;
        let mut rest = buffer.get(..got).unwrap_or_default();
        if rest.is_empty() {
            return Err(Broken::Short);
        }
        while !rest.is_empty() {
            let sent = usize::try_from(stream.send(rest).map_err(Broken::Libvirt)?).unwrap_or(0);
            rest = rest.get(sent..).unwrap_or_default();
        }
        done += got as u64;
        progress(done, length);
    }
    Ok(())
}

/// At most `length` bytes of `volume` from `offset` on; fewer where it ends before.
pub fn download(pool: &StoragePool, volume: &StorageVol, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
    let stream = Stream::new(&pool.connect()?, 0)?;
    // A length of 0 stands for all the rest; the loop below keeps to the limit by itself.
    volume.download(&stream, offset, 0, 0)?;
    let mut bytes = Vec::new();
    let mut buffer = vec![0; CHUNK];
    let full = loop {
        let got = match stream.recv(&mut buffer) {
            Ok(got) => usize::try_from(got).unwrap_or(0),
            Err(error) => {
                let _ = stream.abort();
                return Err(error);
            }
        };
        let room = usize::try_from(length).unwrap_or(usize::MAX) - bytes.len();
        bytes.extend_from_slice(buffer.get(..got.min(room)).unwrap_or_default());
        if got == 0 {
            break false;
        }
        if bytes.len() as u64 >= length {
            break true;
        }
    };
    // What was not asked for is left unread.
    if full {
        stream.abort()?
    } else {
        stream.finish()?
    }
    Ok(bytes)
}
