//! A [`Disk`] in memory, for tests of others. Syncs do nothing; nothing survives the process.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

use lamina_contract::{Disk, DiskFile, Space};
use parking_lot::{Mutex, RwLock};

/// Files by name.
#[derive(Debug, Default)]
pub struct MemoryDisk {
    files: Mutex<HashMap<String, Arc<MemoryFile>>>,
}

#[derive(Debug)]
struct MemoryFile {
    bytes: RwLock<Vec<u8>>,
}

impl Disk for MemoryDisk {
    fn create(&self, name: &str, len: u64, _: Space) -> io::Result<Arc<dyn DiskFile>> {
        let wanted = usize::try_from(len).map_err(|_| io::ErrorKind::StorageFull)?;
        let mut files = self.files.lock();
        if let Some(file) = files.get(name).filter(|file| file.len() == len) {
            return Ok(Arc::clone(file) as Arc<dyn DiskFile>);
        }
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(wanted).map_err(|_| io::ErrorKind::StorageFull)?;
        bytes.resize(wanted, 0);
        let file = Arc::new(MemoryFile { bytes: RwLock::new(bytes) });
        files.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.files.lock().get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(file)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.lock().keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.lock().remove(name);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files.lock();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for MemoryFile {
    fn len(&self) -> u64 {
        self.bytes.read().len() as u64
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let mut bytes = self.bytes.write();
        let mut at = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        for buf in bufs {
            let end = at.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            bytes.get_mut(at..end).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(buf);
            at = end;
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.read();
        let at = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = at.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes.get(at..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}
