/// Hears how a merge goes on. The pipeline prints nothing itself.
pub trait Progress {
    /// The work ahead, in bytes of weights to be read.
    fn start(&mut self, bytes: u64) {
        let _ = bytes;
    }

    /// Work on a layer begins.
    fn layer(&mut self, name: &str) {
        let _ = name;
    }

    /// Bytes of weights have been dealt with.
    fn advance(&mut self, bytes: u64) {
        let _ = bytes;
    }

    /// An alpha is tried, of about so many, `done` of which were tried before; another call for every one.
    fn probe(&mut self, alpha: f64, done: usize, expected: usize) {
        let _ = (alpha, done, expected);
    }

    /// Something the user will like to know.
    fn note(&mut self, message: &str) {
        let _ = message;
    }

    /// Something the user should know.
    fn warn(&mut self, message: &str) {
        let _ = message;
    }
}

/// Listens to nothing.
pub struct Silent;

impl Progress for Silent {}
