// What libstdc++ 8 and glibc 2.28 lack of what a newer g++ calls. It is linked into the library, which
// exports none of it (hidden.map).
#include <new>
#include <sstream>

// g++ 11 and newer call the members of streams in libstdc++; here they are compiled.
template class std::basic_stringbuf<char>;
template class std::basic_ostringstream<char>;
template class std::basic_stringstream<char>;

// cudart calls it; libstdc++ 11 has it.
void std::__throw_bad_array_new_length() { throw std::bad_array_new_length(); }

// glibc 2.32 tells by it whether counting references may do without atomics; 0 is always right.
extern "C" {
char __libc_single_threaded = 0;
}
