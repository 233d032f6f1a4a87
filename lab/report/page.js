// A click on a column's title sorts its table, another click turns the order around; Enter does too.
for (const title of document.querySelectorAll('.sort thead th')) {
  title.tabIndex = 0;
  title.onkeydown = event => { if (event.key === 'Enter') title.onclick(); };
  title.onclick = () => {
    const body = title.closest('table').tBodies[0];
    const sign = title.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
    const valueOf = row => {
      const v = row.cells[title.cellIndex].dataset.v;
      return v === '' || isNaN(v) ? v : +v;
    };
    // cells without a value come last in either order
    const compare = (x, y) => (x === undefined) - (y === undefined) || sign * ((x > y) - (x < y));
    body.append(...[...body.rows].sort((a, b) => compare(valueOf(a), valueOf(b))));
    for (const other of title.parentNode.cells) other.removeAttribute('aria-sort');
    title.setAttribute('aria-sort', sign > 0 ? 'ascending' : 'descending');
  };
}
