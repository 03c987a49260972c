// python.exe for wine.py: starts the Python that is in python311.dll beside it.
#include <windows.h>

typedef int (*Start)(int count, wchar_t** arguments);

int wmain(int count, wchar_t** arguments) {
  HMODULE python = LoadLibraryW(L"python311.dll");
  Start start = python ? (Start)(void*)GetProcAddress(python, "Py_Main") : NULL;
  return start ? start(count, arguments) : 127;
}
