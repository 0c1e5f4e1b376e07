// What a thread takes: a number.
alias Elements = f32;
alias Bits = u32;
