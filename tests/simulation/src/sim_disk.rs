//! A running node's disk: serves reads from memory and notes every change in the log.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use lamina_contract::{Disk, DiskFile, Space};
use parking_lot::Mutex;

use crate::disk_image::{DiskEvent, DiskImage, FileId, Pages, get, put};
use crate::fault::{Fault, Faults};
use crate::log::{Event, Log};

/// Which of the node's disks this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The journal's.
    Journal,
    /// The dedupe cache's.
    Cache,
}

struct Shared {
    role: Role,
    log: Log,
    faults: Faults,
}

impl Shared {
    fn note(&self, event: DiskEvent) {
        self.log.push(match self.role {
            Role::Journal => Event::Journal(event),
            Role::Cache => Event::Cache(event),
        });
    }

    fn fault(&self) -> io::Result<()> {
        self.faults.next().map_or(Ok(()), |fault| Err(fault.error()))
    }
}

struct Names {
    files: BTreeMap<String, Arc<SimFile>>,
    next: FileId,
}

/// See the module's header.
pub struct SimDisk {
    shared: Arc<Shared>,
    names: Mutex<Names>,
}

struct SimFile {
    id: FileId,
    len: u64,
    shared: Arc<Shared>,
    pages: Mutex<Arc<Pages>>,
}

impl SimDisk {
    /// A disk that holds what `image` shows to a process.
    #[must_use]
    pub fn over(image: &DiskImage, role: Role, log: Log, faults: Faults) -> Self {
        let shared = Arc::new(Shared { role, log, faults });
        let file = |(id, len, pages)| Arc::new(SimFile { id, len, shared: shared.clone(), pages: Mutex::new(pages) });
        let files = image.view().into_iter().map(|(name, found)| (name, file(found))).collect();
        Self { names: Mutex::new(Names { files, next: image.next_file() }), shared }
    }
}

impl Disk for SimDisk {
    fn create(&self, name: &str, len: u64, _: Space) -> io::Result<Arc<dyn DiskFile>> {
        self.shared.fault()?;
        let mut names = self.names.lock();
        if let Some(file) = names.files.get(name).filter(|file| file.len == len) {
            return Ok(file.clone());
        }
        let id = names.next;
        names.next = FileId(id.0 + 1);
        let file = Arc::new(SimFile { id, len, shared: self.shared.clone(), pages: Mutex::default() });
        names.files.insert(name.to_owned(), file.clone());
        self.shared.note(DiskEvent::Create { name: name.to_owned(), file: id, len });
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.shared.fault()?;
        let file = self.names.lock().files.get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(file)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        self.shared.fault()?;
        Ok(self.names.lock().files.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.shared.fault()?;
        if self.names.lock().files.remove(name).is_some() {
            self.shared.note(DiskEvent::Remove { name: name.to_owned() });
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.shared.fault()?;
        let mut names = self.names.lock();
        let file = names.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.files.insert(to.to_owned(), file);
        self.shared.note(DiskEvent::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        self.shared.fault()?;
        self.shared.note(DiskEvent::SyncNames);
        Ok(())
    }
}

impl SimFile {
    fn check(&self, offset: u64, len: usize) -> io::Result<()> {
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= self.len);
        if inside { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn accept(&self, offset: u64, data: Bytes) {
        // Noted under the lock, so that the log has the order in which the file changed.
        let mut pages = self.pages.lock();
        put(Arc::make_mut(&mut pages), offset, &data);
        self.shared.note(DiskEvent::Write { file: self.id, offset, data });
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let mut data = BytesMut::with_capacity(bufs.iter().map(|buf| buf.len()).sum());
        bufs.iter().for_each(|buf| data.extend_from_slice(buf));
        self.check(offset, data.len())?;
        if let Some(fault) = self.shared.faults.next() {
            if fault == Fault::Half {
                data.truncate(data.len() / 2);
                self.accept(offset, data.freeze());
            }
            return Err(fault.error());
        }
        self.accept(offset, data.freeze());
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset, buf.len())?;
        self.shared.fault()?;
        let pages = self.pages.lock().clone();
        get(&pages, offset, buf);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.shared.fault()?;
        self.shared.note(DiskEvent::Sync { file: self.id });
        Ok(())
    }
}
