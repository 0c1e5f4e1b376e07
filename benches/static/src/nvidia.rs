//! NVIDIA's compiler, from the pieces that PyPI has: NVRTC makes machine code of CUDA without a GPU, nvdisasm prints it. Not the front
//! end of NVIDIA's Vulkan driver, and without its checks of bounds, but the same back end.

use crate::cases::Case;
use crate::report::Compiled;
use crate::{Result, cuda, sass};
use libloading::{Library, Symbol};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::null;

/// NVRTC for one architecture, `sm_90`, and nvdisasm.
pub struct Compiler {
    nvrtc: Library,
    disassembler: PathBuf,
    architecture: String,
    /// A folder of this run's.
    scratch: PathBuf,
}

type Program = *mut c_void;

impl Compiler {
    /// From the folder that `pip install --target` filled.
    pub fn open(folder: &Path, architecture: &str) -> Result<Compiler> {
        let missing = |what| format!("{}: no {what} in there", folder.display());
        let library = find(folder, "lib", "libnvrtc.so.").ok_or_else(|| missing("NVRTC"))?;
        let disassembler = find(folder, "bin", "nvdisasm").ok_or_else(|| missing("nvdisasm"))?;
        let scratch = std::env::temp_dir().join(format!("esmerge-static-{}", std::process::id()));
        std::fs::create_dir_all(&scratch)?;
        // SAFETY: loading runs NVIDIA's own initialisation
        let nvrtc = unsafe { Library::new(library)? };
        Ok(Compiler { nvrtc, disassembler, architecture: architecture.to_lowercase(), scratch })
    }

    pub fn version(&self) -> Result<String> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: as `nvrtc.h` declares it
        unsafe {
            let version: Symbol<'_, unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int> =
                self.nvrtc.get(b"nvrtcVersion")?;
            version(&mut major, &mut minor);
        }
        Ok(format!("NVRTC {major}.{minor}"))
    }

    pub fn compile(&self, case: &Case) -> Result<Compiled> {
        let (binary, log) = self.translate(&cuda::write(case)?)?;
        let file = self.scratch.join("program.cubin");
        std::fs::write(&file, binary)?;
        let printed = Command::new(&self.disassembler).arg("-c").arg("-hex").arg(&file).output()?;
        if !printed.status.success() {
            return Err(format!("nvdisasm: {}", String::from_utf8_lossy(&printed.stderr)).into());
        }
        let program = sass::parse(&String::from_utf8_lossy(&printed.stdout));
        let said = |after: &str, unit: &str| number(&log, after, unit);
        let registers = said("Used ", " registers").ok_or("ptxas does not say how many registers it used")?;
        Ok(Compiled {
            registers,
            spilled: said(", ", " bytes spill stores").unwrap_or(0) / 4,
            shared: said(", ", " bytes smem").unwrap_or(0),
            // of the 512 registers that a lane of a scheduler has, eight at a time; at most 16
            waves: (512 / registers.next_multiple_of(8)).min(16),
            instructions: program.len() as u64,
            program,
        })
    }

    /// The machine code, and what ptxas says of it.
    fn translate(&self, source: &str) -> Result<(Vec<u8>, String)> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        let options = [
            format!("--gpu-architecture={}", self.architecture),
            "--device-as-default-execution-space".into(),
            "--std=c++17".into(),
            "--use_fast_math".into(),
            "--disable-warnings".into(),
            "--ptxas-options=-v".into(),
        ];
        let options = options.map(CString::new);
        let options = options.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
        let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let source = CString::new(source)?;
        // SAFETY: as `nvrtc.h` declares them, with strings that outlive the calls
        unsafe {
            let create: Symbol<'_, Create> = self.nvrtc.get(b"nvrtcCreateProgram")?;
            let compile: Symbol<'_, Compile> = self.nvrtc.get(b"nvrtcCompileProgram")?;
            let destroy: Symbol<'_, Destroy> = self.nvrtc.get(b"nvrtcDestroyProgram")?;
            let mut program = std::ptr::null_mut();
            create(&mut program, source.as_ptr(), c"shader.cu".as_ptr(), 0, null(), null());
            let failed = compile(program, options.len() as c_int, options.as_ptr());
            let log = self.output(program, "nvrtcGetProgramLog")?;
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().into_owned();
            if failed != 0 {
                return Err(log.into());
            }
            let binary = self.output(program, "nvrtcGetCUBIN")?;
            destroy(&mut program);
            Ok((binary, log))
        }
    }

    /// What a pair of functions gives: one its size, and one itself.
    unsafe fn output(&self, program: Program, name: &str) -> Result<Vec<u8>> {
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        // SAFETY: as `nvrtc.h` declares them; the buffer is of the size that it says
        unsafe {
            let size: Symbol<'_, Size> = self.nvrtc.get(format!("{name}Size").as_bytes())?;
            let get: Symbol<'_, Get> = self.nvrtc.get(name.as_bytes())?;
            let mut len = 0;
            size(program, &mut len);
            let mut bytes = vec![0u8; len];
            get(program, bytes.as_mut_ptr().cast());
            Ok(bytes)
        }
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// The first file `nvidia/*/KIND/NAME...`.
fn find(folder: &Path, kind: &str, name: &str) -> Option<PathBuf> {
    let packages = std::fs::read_dir(folder.join("nvidia")).ok()?.flatten();
    let files = packages.filter_map(|package| std::fs::read_dir(package.path().join(kind)).ok()).flatten();
    let mut found: Vec<_> = files.flatten().map(|file| file.path()).collect();
    found.retain(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)));
    found.sort();
    found.into_iter().next()
}

/// The number between two texts.
fn number(log: &str, before: &str, after: &str) -> Option<u64> {
    let (head, _) = log.split_once(after)?;
    head.rsplit(before).next()?.trim().parse().ok()
}
