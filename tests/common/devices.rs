use esmerge::backend::Backend;
#[derive(Clone)]
pub struct Device;
pub trait Work {
    type Output;
    fn run<B: Backend>(self, backend: &B) -> Self::Output;
}
impl Device {
    pub fn present(&self) -> bool {
        true
    }
    pub fn with<W: Work>(&self, w: W) -> W::Output {
        w.run(&esmerge::backend::cpu::Cpu)
    }
}
impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("cpu")
    }
}
pub fn for_each_device() -> Vec<Device> {
    vec![Device]
}
