//! Folders, and where the bytes of files are.

use super::{Place, ReadAt, Scratch};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::time::SystemTime;

/// Bytes of a block of the scratch; smaller files stay in memory.
const BLOCK: u64 = 1 << 20;

/// A file or folder, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(u64);

/// The first.
const ROOT: Id = Id(0);

struct Node {
    content: Content,
    /// Names and open files.
    holders: usize,
}

enum Content {
    Folder(BTreeMap<OsString, Id>),
    Mounted(Rc<dyn ReadAt>),
    Memory(Vec<u8>),
    Blocks { blocks: Vec<u64>, length: u64 },
}

/// How to read a file, apart from the tree.
pub enum Reader {
    Mounted(Rc<dyn ReadAt>),
    Written(Id),
}

pub struct Tree {
    nodes: HashMap<Id, Node>,
    next: u64,
    scratch: Option<Rc<dyn Scratch>>,
    /// Blocks of the scratch that nothing lies in, and the first that was never used.
    free: Vec<u64>,
    end: u64,
}

/// Does something with the disk of this thread.
pub fn with<R>(work: impl FnOnce(&mut Tree) -> R) -> R {
    thread_local! {
        static TREE: RefCell<Tree> = RefCell::new(Tree::new());
    }
    TREE.with_borrow_mut(work)
}

/// What is to be removed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum What {
    File,
    EmptyFolder,
    Folder,
}

/// As `std::fs::Metadata`.
#[derive(Clone, Copy, Debug)]
pub struct Metadata {
    folder: bool,
    length: u64,
}

/// As `std::fs::FileType`.
pub type FileType = Metadata;

/// As `std::fs::Permissions`, of which there are none.
#[derive(Clone, Debug)]
pub struct Permissions;

impl Metadata {
    /// Itself.
    pub fn file_type(&self) -> FileType {
        *self
    }

    /// Whether it has bytes.
    pub fn is_file(&self) -> bool {
        !self.folder
    }

    /// Whether it has names in it.
    pub fn is_dir(&self) -> bool {
        self.folder
    }

    /// There are none.
    pub fn is_symlink(&self) -> bool {
        false
    }

    /// Bytes of a file.
    #[allow(clippy::len_without_is_empty)] // as in the standard library
    pub fn len(&self) -> u64 {
        self.length
    }

    /// There are none.
    pub fn permissions(&self) -> Permissions {
        Permissions
    }

    /// No time is kept.
    ///
    /// # Errors
    /// Always.
    pub fn modified(&self) -> io::Result<SystemTime> {
        Err(ErrorKind::Unsupported.into())
    }
}

/// As `std::fs::DirEntry`.
#[derive(Clone, Debug)]
pub struct DirEntry {
    path: PathBuf,
    meta: Metadata,
}

impl DirEntry {
    /// The name alone.
    pub fn file_name(&self) -> OsString {
        self.path.file_name().unwrap_or_default().to_owned()
    }

    /// With the folder's path.
    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// What it is.
    ///
    /// # Errors
    /// None on this disk.
    pub fn metadata(&self) -> io::Result<Metadata> {
        Ok(self.meta)
    }

    /// What it is.
    ///
    /// # Errors
    /// None on this disk.
    pub fn file_type(&self) -> io::Result<FileType> {
        Ok(self.meta)
    }
}

/// As `std::fs::ReadDir`.
pub type ReadDir = std::vec::IntoIter<io::Result<DirEntry>>;

/// A path from the root on, without `.` and `..`.
pub fn absolute(path: &Path) -> PathBuf {
    let mut whole = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => whole.push(name),
            Component::ParentDir => drop(whole.pop()),
            _ => {}
        }
    }
    whole
}

fn no_name() -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, "the path ends in no name")
}

impl Tree {
    fn new() -> Self {
        let root = Node { content: Content::Folder(BTreeMap::new()), holders: 1 };
        Tree { nodes: HashMap::from([(ROOT, root)]), next: 1, scratch: None, free: Vec::new(), end: 0 }
    }

    pub fn set_scratch(&mut self, scratch: Rc<dyn Scratch>) {
        self.scratch = Some(scratch);
    }

    fn node(&self, id: Id) -> io::Result<&Node> {
        self.nodes.get(&id).ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// What a path leads to.
    pub fn find(&self, path: &Path) -> io::Result<Id> {
        let mut id = ROOT;
        for name in absolute(path).iter().skip(1) {
            let Content::Folder(names) = &self.node(id)?.content else {
                return Err(ErrorKind::NotADirectory.into());
            };
            id = *names.get(name).ok_or(ErrorKind::NotFound)?;
        }
        Ok(id)
    }

    pub fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        self.metadata_of(self.find(path)?)
    }

    pub fn metadata_of(&self, id: Id) -> io::Result<Metadata> {
        let (folder, length) = match &self.node(id)?.content {
            Content::Folder(_) => (true, 0),
            Content::Mounted(bytes) => (false, bytes.length()),
            Content::Memory(bytes) => (false, bytes.len() as u64),
            Content::Blocks { length, .. } => (false, *length),
        };
        Ok(Metadata { folder, length })
    }

    /// The names in the folder that a path lies in, and its own.
    fn names_around<'a>(&mut self, path: &'a Path) -> io::Result<(&mut BTreeMap<OsString, Id>, &'a OsStr)> {
        let name = path.file_name().ok_or_else(no_name)?;
        let folder = self.find(path.parent().unwrap_or(Path::new("/")))?;
        match self.nodes.get_mut(&folder).map(|node| &mut node.content) {
            Some(Content::Folder(names)) => Ok((names, name)),
            _ => Err(ErrorKind::NotADirectory.into()),
        }
    }

    /// A new name for something that holds it from now on.
    fn add(&mut self, path: &Path, content: Content) -> io::Result<Id> {
        let (id, path) = (Id(self.next), absolute(path));
        let (names, name) = self.names_around(&path)?;
        if names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        names.insert(name.to_owned(), id);
        self.next += 1;
        self.nodes.insert(id, Node { content, holders: 1 });
        Ok(id)
    }

    pub fn create_file(&mut self, path: &Path) -> io::Result<Id> {
        self.add(path, Content::Memory(Vec::new()))
    }

    pub fn create_folder(&mut self, path: &Path) -> io::Result<()> {
        self.add(path, Content::Folder(BTreeMap::new())).map(drop)
    }

    pub fn create_folders(&mut self, path: &Path) -> io::Result<()> {
        let path = absolute(path);
        let mut missing: Vec<&Path> = path.ancestors().take_while(|p| self.metadata(p).is_err()).collect();
        while let Some(folder) = missing.pop() {
            self.create_folder(folder)?;
        }
        if self.metadata(&path)?.is_dir() { Ok(()) } else { Err(ErrorKind::AlreadyExists.into()) }
    }

    pub fn mount(&mut self, path: &Path, bytes: Rc<dyn ReadAt>) -> io::Result<()> {
        let path = absolute(path);
        self.create_folders(path.parent().ok_or_else(no_name)?)?;
        if self.find(&path).is_ok() {
            self.remove(&path, What::Folder)?;
        }
        self.add(&path, Content::Mounted(bytes)).map(drop)
    }

    pub fn list(&self, path: &Path) -> io::Result<ReadDir> {
        let Content::Folder(names) = &self.node(self.find(path)?)?.content else {
            return Err(ErrorKind::NotADirectory.into());
        };
        let entry = |(name, id): (&OsString, &Id)| {
            Ok(DirEntry { path: path.join(name), meta: self.metadata_of(*id)? })
        };
        Ok(names.iter().map(entry).collect::<Vec<_>>().into_iter())
    }

    pub fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (id, to) = (self.find(from)?, absolute(to));
        if self.metadata_of(id)?.is_dir() {
            return Err(ErrorKind::IsADirectory.into());
        }
        let (names, name) = self.names_around(&to)?;
        if names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        names.insert(name.to_owned(), id);
        self.hold(id);
        Ok(())
    }

    pub fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (absolute(from), absolute(to));
        let id = self.find(&from)?;
        if from == to {
            return Ok(());
        }
        if to.starts_with(&from) {
            return Err(ErrorKind::InvalidInput.into());
        }
        if let Ok(there) = self.find(&to) {
            let (new, old) = (self.metadata_of(id)?, self.metadata_of(there)?);
            match (new.is_dir(), old.is_dir()) {
                (true, true) => self.remove(&to, What::EmptyFolder)?,
                (false, false) => self.remove(&to, What::File)?,
                (true, false) => return Err(ErrorKind::NotADirectory.into()),
                (false, true) => return Err(ErrorKind::IsADirectory.into()),
            }
        }
        let (names, name) = self.names_around(&to)?;
        names.insert(name.to_owned(), id);
        let (names, name) = self.names_around(&from)?;
        names.remove(name);
        Ok(())
    }

    pub fn remove(&mut self, path: &Path, what: What) -> io::Result<()> {
        let path = absolute(path);
        let id = self.find(&path)?;
        match (&self.node(id)?.content, what) {
            (Content::Folder(_), What::File) => return Err(ErrorKind::IsADirectory.into()),
            (Content::Folder(names), What::EmptyFolder) if !names.is_empty() => {
                return Err(ErrorKind::DirectoryNotEmpty.into());
            }
            (Content::Folder(_), _) | (_, What::File | What::Folder) => {}
            (_, What::EmptyFolder) => return Err(ErrorKind::NotADirectory.into()),
        }
        let (names, name) = self.names_around(&path)?;
        names.remove(name);
        self.release(id);
        Ok(())
    }

    /// One more name or open file.
    pub fn hold(&mut self, id: Id) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.holders += 1;
        }
    }

    /// One less; what nobody holds goes, and its blocks are free.
    pub fn release(&mut self, id: Id) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.holders -= 1;
        if node.holders > 0 {
            return;
        }
        match self.nodes.remove(&id).map(|node| node.content) {
            Some(Content::Folder(names)) => names.into_values().for_each(|id| self.release(id)),
            Some(Content::Blocks { blocks, .. }) => self.free.extend(blocks),
            _ => {}
        }
    }

    pub fn check_writable(&self, id: Id) -> io::Result<()> {
        match self.node(id)?.content {
            Content::Folder(_) => Err(ErrorKind::IsADirectory.into()),
            Content::Mounted(_) => Err(ErrorKind::PermissionDenied.into()),
            Content::Memory(_) | Content::Blocks { .. } => Ok(()),
        }
    }

    /// A file without bytes.
    pub fn empty(&mut self, id: Id) {
        if let Some(node) = self.nodes.get_mut(&id)
            && let Content::Blocks { blocks, .. } =
                std::mem::replace(&mut node.content, Content::Memory(Vec::new()))
        {
            self.free.extend(blocks);
        }
    }

    pub fn reader(&self, id: Id) -> io::Result<Reader> {
        match &self.node(id)?.content {
            Content::Folder(_) => Err(ErrorKind::IsADirectory.into()),
            Content::Mounted(bytes) => Ok(Reader::Mounted(Rc::clone(bytes))),
            Content::Memory(_) | Content::Blocks { .. } => Ok(Reader::Written(id)),
        }
    }

    /// Bytes that are there, of a written file.
    fn read_at(&self, id: Id, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match (&self.node(id)?.content, &self.scratch) {
            (Content::Memory(all), _) => {
                let at = offset as usize;
                bytes.copy_from_slice(all.get(at..at + bytes.len()).ok_or(ErrorKind::UnexpectedEof)?);
                Ok(())
            }
            (Content::Blocks { blocks, .. }, Some(scratch)) => {
                pieces(offset, bytes.len()).try_for_each(|piece| {
                    let block = blocks.get(piece.block).ok_or(ErrorKind::UnexpectedEof)?;
                    scratch.read_at(&mut bytes[piece.range], block * BLOCK + piece.within)
                })
            }
            _ => Err(ErrorKind::Unsupported.into()),
        }
    }

    pub fn write_at(&mut self, id: Id, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (scratch, end) = (self.scratch.clone(), offset + bytes.len() as u64);
        self.check_writable(id)?;
        self.fill_to(id, offset)?;
        if scratch.is_some() && end >= BLOCK {
            self.keep_in_blocks(id)?;
        }
        let Tree { nodes, free, end: unused, .. } = self;
        match (nodes.get_mut(&id).map(|node| &mut node.content), scratch) {
            (Some(Content::Memory(all)), _) => {
                let len = all.len().max(end as usize);
                all.resize(len, 0);
                all[offset as usize..end as usize].copy_from_slice(bytes);
                Ok(())
            }
            (Some(Content::Blocks { blocks, length }), Some(scratch)) => {
                for piece in pieces(offset, bytes.len()) {
                    if piece.block == blocks.len() {
                        blocks.push(free.pop().unwrap_or_else(|| {
                            *unused += 1;
                            *unused - 1
                        }));
                    }
                    let at = blocks[piece.block] * BLOCK + piece.within;
                    let written = piece.block as u64 * BLOCK + piece.within + piece.range.len() as u64;
                    scratch.write_at(&bytes[piece.range], at)?;
                    *length = (*length).max(written);
                }
                Ok(())
            }
            _ => Err(ErrorKind::Unsupported.into()),
        }
    }

    /// Zeros from the end of a file to a place past it, as a disk gives where nothing was written.
    fn fill_to(&mut self, id: Id, offset: u64) -> io::Result<()> {
        let mut end = self.metadata_of(id)?.len();
        while end < offset {
            let count = (offset - end).min(BLOCK);
            self.write_at(id, &vec![0; count as usize], end)?;
            end += count;
        }
        Ok(())
    }

    /// A file of another length.
    pub fn set_length(&mut self, id: Id, wanted: u64) -> io::Result<()> {
        self.fill_to(id, wanted)?;
        match self.nodes.get_mut(&id).map(|node| &mut node.content) {
            Some(Content::Memory(bytes)) => bytes.truncate(wanted as usize),
            Some(Content::Blocks { blocks, length }) => {
                *length = wanted;
                self.free.extend(blocks.drain((wanted.div_ceil(BLOCK) as usize).min(blocks.len())..));
            }
            _ => {}
        }
        Ok(())
    }

    /// Moves a file from memory to the scratch.
    fn keep_in_blocks(&mut self, id: Id) -> io::Result<()> {
        let Some(Node { content: content @ Content::Memory(_), .. }) = self.nodes.get_mut(&id) else {
            return Ok(());
        };
        let empty = Content::Blocks { blocks: Vec::new(), length: 0 };
        let Content::Memory(bytes) = std::mem::replace(content, empty) else { return Ok(()) };
        self.write_at(id, &bytes, 0)
    }

    pub fn place(&self, path: &Path) -> io::Result<Place> {
        match &self.node(self.find(path)?)?.content {
            Content::Memory(bytes) => Ok(Place::Memory(bytes.clone())),
            Content::Blocks { blocks, length } => {
                let piece = |(i, block): (usize, &u64)| (block * BLOCK, BLOCK.min(length - i as u64 * BLOCK));
                Ok(Place::Scratch(blocks.iter().enumerate().map(piece).collect()))
            }
            Content::Folder(_) => Err(ErrorKind::IsADirectory.into()),
            Content::Mounted(_) => Err(ErrorKind::Unsupported.into()),
        }
    }
}

impl Reader {
    pub fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Reader::Mounted(mounted) => mounted.read_at(bytes, offset),
            Reader::Written(id) => with(|tree| tree.read_at(*id, bytes, offset)),
        }
    }
}

/// What of a run of bytes lies in one block.
struct Piece {
    block: usize,
    /// From the block's start.
    within: u64,
    range: std::ops::Range<usize>,
}

/// A run of `len` bytes from `offset` on, block by block.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let count = ((BLOCK - at % BLOCK) as usize).min(len - done);
        let range = done..done + count;
        done += count;
        (count > 0).then_some(Piece { block: (at / BLOCK) as usize, within: at % BLOCK, range })
    })
}
